// What every page loads: htmx for forms that answer in place, and a few small custom elements.
import "./htmx.js";
import "./times.js";
import "./live-region.js";
import "./copy-line.js";
import "./quota-summary.js";
import "./palette.js";
import "./forms.js";
