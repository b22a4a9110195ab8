// Elements made of text alone: nothing that a name or an answer says is ever read as HTML.

/** The element of this page with an id. */
export const byId = (id) => document.getElementById(id);

/** A new element; `properties` are its attributes, `children` texts and elements. */
export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value !== undefined && value !== '') made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Replace what an element has, where it is to have something else: focus and scrolling stay where nothing changed. */
export function fill(element, signature, children) {
  if (element.dataset.shown === signature) return;
  element.dataset.shown = signature;
  element.replaceChildren(...children);
}
