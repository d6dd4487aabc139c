/** Small helpers for the document: elements, icons, messages, dialogs. */

import { t } from "./i18n.js";

export const $ = (id) => document.getElementById(id);

/**
 * Make an element. Keys of `given` that begin with "on" are listeners, `class` is its class, others are attributes;
 * null and false omit an attribute. Text is never read as markup.
 */
export function h(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const PATHS = {
  upload: "M12 16V4m0 0L7 9m5-5 5 5M4 16v3a1 1 0 0 0 1 1h14a1 1 0 0 0 1-1v-3",
  mic: "M12 3a3 3 0 0 0-3 3v6a3 3 0 0 0 6 0V6a3 3 0 0 0-3-3ZM5 11a7 7 0 0 0 14 0M12 18v3",
  stop: "M7 7h10v10H7z",
  back: "M15 5l-7 7 7 7",
  up: "M6 15l6-6 6 6",
  down: "M6 9l6 6 6-6",
  cues: "M3 5h18v14H3zM7 11h4m3 0h3M7 15h6m3 0h1",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  download: "M12 4v12m0 0 5-5m-5 5-5-5M4 20h16",
  bin: "M4 7h16M10 11v6m4-6v6M6 7l1 13h10l1-13M9 7V4h6v3",
  play: "M8 5l11 7-11 7z",
  pause: "M8 5v14M16 5v14",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
};
const SVG = "http://www.w3.org/2000/svg";

/** An icon for a button, which also has a text or a label. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", "aria-hidden": "true", class: `icon-${name}` }))
    svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** Fill in the texts in the reader's language, and the icons, of the elements in the HTML. */
export function furnish(root = document) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]"))
    element.setAttribute("aria-label", t(element.dataset.tLabel));
  for (const element of root.querySelectorAll("[data-t-placeholder]"))
    element.setAttribute("placeholder", t(element.dataset.tPlaceholder));
  for (const element of root.querySelectorAll("[data-icon]")) {
    element.prepend(icon(element.dataset.icon));
    if (element.classList.contains("icon")) element.title = element.getAttribute("aria-label") ?? "";
  }
}

/** Announce to screen readers something that is visible to others. */
export function announce(text) {
  $("announcer").textContent = text;
}

const TOAST_MILLISECONDS = 6000;
let toastTimer = 0;

/** Show a message for a moment; with `action`, offer to undo. */
export function toast(text, action = null) {
  const button = action && h("button", { type: "button", class: "quiet", onclick: () => (hide(), action.run()) }, action.label);
  const hide = () => $("toast").replaceChildren();
  $("toast").replaceChildren(h("p", {}, text, button));
  clearTimeout(toastTimer);
  // The message stays while the pointer or the focus is on it.
  const later = () => {
    toastTimer = setTimeout(() => ($("toast").matches(":hover, :focus-within") ? later() : hide()), TOAST_MILLISECONDS);
  };
  later();
}

/** Show an error until it is closed or replaced by another one. */
export function complain(error) {
  if (error?.name === "AbortError") return;
  const close = h("button", { type: "button", class: "icon quiet", "aria-label": t("close") }, icon("close"));
  const notice = h("div", { class: "notice" }, h("p", {}, error?.message ?? String(error)), close);
  close.addEventListener("click", () => notice.remove());
  $("problems").replaceChildren(notice);
}

/** Remove the error. */
export function content() {
  $("problems").replaceChildren();
}

/** Go back to the start page; the deleted job is removed from the history. */
export const leave = () => location.replace("#");

/** Ask for confirmation; resolves to true or false. */
export function confirmed(title, words, yes) {
  const dialog = $("confirm-dialog");
  $("confirm-title").textContent = title;
  $("confirm-words").textContent = words;
  $("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  $("confirm-yes").onclick = () => dialog.close("yes");
  $("confirm-no").onclick = () => dialog.close("");
  dialog.showModal();
  $("confirm-no").focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}
