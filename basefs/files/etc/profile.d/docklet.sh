# Terminals that bring no locale of their own get the one this node has.
export LANG="${LANG:-C.UTF-8}"
