/** Making elements. Text goes in as text only, so nothing that a server says is ever read as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** Returns the element of the page with that id. */
export const find = (id) => document.getElementById(id);

/** Returns a new element: attributes (true and false switch one on and off, functions listen), then children. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Returns a new element of a drawing. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Shows one sentence, or hides the place where it would stand. */
export function say(place, sentence) {
  if (place.textContent !== sentence) place.textContent = sentence;
  place.hidden = !sentence;
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
