// Elements and text. Text from the gateway becomes text nodes only: nothing here, and nothing elsewhere in the console,
// makes HTML of a string.

const SVG = "http://www.w3.org/2000/svg";

/**
 * A new element. `attributes`: `class`, `onclick` and others that begin with "on" (functions), `dataset` (an object),
 * properties such as `value`, `checked` and `disabled`, all else is set as an attribute. null, undefined and false leave it
 * out. `children`: nodes, strings, numbers, or lists of them; null, undefined and false are left out.
 */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** As `h`, of an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const PROPERTIES = new Set(["value", "checked", "disabled", "indeterminate", "selected", "multiple", "open"]);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) {
      if (typeof value !== "function") throw new TypeError(`${name} takes a function`);
      element.addEventListener(name.slice(2), value);
    } else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "href") element.setAttribute("href", safeAddress(value));
    else if (PROPERTIES.has(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

function safeAddress(value) {
  const address = new URL(String(value), document.baseURI);
  if (!["http:", "https:", "blob:"].includes(address.protocol)) throw new TypeError("this is no address to link to");
  return String(value);
}

/** Put `children` in place of what `element` holds. */
export function replace(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

/** Set the text of `element` if it differs, so that a screen reader and a selection are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A message of the gateway, for `h`: what stands between `backticks` becomes <code>. */
export function marked(text) {
  return String(text).split("`").map((part, index) => (index % 2 ? h("code", {}, part) : part));
}

// ---------------------------------------------------------------------- numbers and times for people

const UNITS = ["B", "KB", "MB", "GB", "TB", "PB"];

/** 1234567 → "1.2 MB"; "–" for null. Decimal units. */
export function bytes(count) {
  if (count === null || count === undefined) return "–";
  let value = count, unit = 0;
  while (Math.abs(value) >= 999.5 && unit < UNITS.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${unit === 0 || value >= 99.5 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** 1234567 → "1,234,567"; "–" for null. */
export function number(count) {
  return count === null || count === undefined ? "–" : GROUPED.format(count);
}

/** 0.02 → "20 ms", 75 → "1 min 15 s", 100000 → "1 d 3 h"; "–" for null. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 0) return "0 s";
  if (seconds > 0 && seconds < 0.9995) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${Math.round(seconds * 10) / 10} s`;
  let left = Math.round(seconds);
  const parts = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    if (left >= size && parts.length < 2) parts.push(`${Math.floor(left / size)} ${unit}`);
    else if (parts.length) break;
    left %= size;
  }
  return parts.join(" ");
}

/** The age of a moment: "just now", "3 min ago", "in 2 h"; "–" for null. `moment`: RFC 3339 text, a Date or ms. */
export function ago(moment, now = Date.now()) {
  if (!moment) return "–";
  const seconds = (now - new Date(moment).getTime()) / 1000;
  if (Math.abs(seconds) < 2) return "just now";
  const text = duration(Math.round(Math.abs(seconds))).split(" ").slice(0, 2).join(" ");
  return seconds > 0 ? `${text} ago` : `in ${text}`;
}

const MOMENT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** A moment in the person's own time zone, to the second; "–" for null. */
export function moment(at) {
  return at ? MOMENT.format(new Date(at)) : "–";
}

/** `<time>` with the age of a moment, and the moment itself as its title. */
export function timeAgo(at) {
  return at ? h("time", { datetime: new Date(at).toISOString(), title: moment(at) }, ago(at)) : "–";
}
