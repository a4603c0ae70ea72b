# ~/.bashrc: read by interactive shells.
case $- in *i*) ;; *) return ;; esac

HISTCONTROL=ignoreboth
HISTSIZE=10000
HISTFILESIZE=20000
shopt -s histappend checkwinsize

# user@node:directory, and the status of the last command where it failed.
_docklet_status() { local s=$?; [ "$s" -eq 0 ] || printf '[%d] ' "$s"; }
if [ "${TERM:-dumb}" = dumb ]; then
  PS1='$(_docklet_status)\u@\h:\w\$ '
else
  PS1='\[\e[31m\]$(_docklet_status)\[\e[1;32m\]\u@\h\[\e[0m\]:\[\e[1;34m\]\w\[\e[0m\]\$ '
fi

alias ls='ls --color=auto'
alias ll='ls -l --color=auto'
alias la='ls -la --color=auto'
alias grep='grep --color=auto'

[ -f /usr/share/bash-completion/bash_completion ] && . /usr/share/bash-completion/bash_completion
