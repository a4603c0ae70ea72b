// The terminal's two palettes; every colour is readable on its background.

export const DARK = {
  background: "#0d161c", foreground: "#dbe6ea", cursor: "#ff8a66", cursorAccent: "#0d161c", selectionBackground: "#2c5561",
  black: "#22313a", red: "#ff8a80", green: "#6fd69a", yellow: "#e8b44a", blue: "#7fb8ff", magenta: "#d3a4ff", cyan: "#5cc8d8", white: "#dbe6ea",
  brightBlack: "#8798a1", brightRed: "#ffb0a8", brightGreen: "#98e8b8", brightYellow: "#ffd27a", brightBlue: "#abd0ff", brightMagenta: "#e5c8ff", brightCyan: "#93e0ea", brightWhite: "#ffffff",
};

export const LIGHT = {
  background: "#fbfaf7", foreground: "#1b2a33", cursor: "#c23f17", cursorAccent: "#fbfaf7", selectionBackground: "#bfe0e5",
  black: "#1b2a33", red: "#b3261e", green: "#14693a", yellow: "#7d5200", blue: "#0b5cad", magenta: "#7a3ea8", cyan: "#0b6275", white: "#5b6a73",
  brightBlack: "#56656f", brightRed: "#9c1c15", brightGreen: "#0e5a30", brightYellow: "#6b4600", brightBlue: "#084c92", brightMagenta: "#652f8f", brightCyan: "#084e5e", brightWhite: "#3c4a53",
};
