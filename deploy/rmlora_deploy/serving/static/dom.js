/** Creates elements. Text is only ever inserted as text, so nothing from a server is parsed as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** Returns the element with that id. */
export const find = (id) => document.getElementById(id);

/** Returns a new element: attributes (a boolean turns one on or off, a function is an event listener), then children. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Returns a new SVG element. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Shows a sentence in an element, or hides the element if the sentence is empty. */
export function say(target, sentence) {
  if (target.textContent !== sentence) target.textContent = sentence;
  target.hidden = !sentence;
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
