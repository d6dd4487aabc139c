/** Search in the transcript while typing: across words, without case and accents. */

import { $ } from "./dom.js";
import { folded, number, t } from "./i18n.js";
import { keepInView, lastAtOrBefore } from "./player.js";

const TYPING_PAUSE = 120;

export class Search {
  constructor(transcript) {
    this.transcript = transcript;
    this.input = $("search");
    this.index = null;
    this.hits = [];
    this.at = -1;
    let timer = 0;
    this.input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.#find(), TYPING_PAUSE);
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.input.value) {
        event.preventDefault();
        this.clear();
      }
      if (event.key !== "Enter" || event.isComposing) return;
      clearTimeout(timer);
      if (this.sought !== this.#wanted) this.#find();
      else this.#go(event.shiftKey ? -1 : 1);
    });
    $("next").addEventListener("click", () => this.#go(1));
    $("previous").addEventListener("click", () => this.#go(-1));
  }

  get #wanted() {
    return folded(this.input.value.trim().replace(/\s+/g, " "));
  }

  clear() {
    this.input.value = "";
    this.#find();
  }

  /** The words have changed. */
  refresh() {
    this.index = null;
    if (this.input.value) this.#find({ move: false });
  }

  /** All words as one text, and the position of each word in it. */
  #text() {
    if (this.index) return this.index;
    const starts = new Float64Array(this.transcript.words.length);
    let text = "";
    this.transcript.words.forEach((word, place) => {
      starts[place] = text.length;
      // In a language with spaces, words and paragraphs are separated by a space.
      const spaced = word.element.nextSibling?.nodeType === Node.TEXT_NODE;
      text += folded(word.element.textContent) + (spaced ? " " : "");
    });
    this.index = { text, starts };
    return this.index;
  }

  #find({ move = true } = {}) {
    for (const hit of this.hits) for (const element of hit) element.classList.remove("hit", "hit-now");
    this.hits = [];
    this.sought = this.#wanted;
    const { words } = this.transcript;
    if (this.sought) {
      const { text, starts } = this.#text();
      for (let at = text.indexOf(this.sought); at >= 0; at = text.indexOf(this.sought, at + this.sought.length)) {
        const [first, last] = [lastAtOrBefore(starts, at), lastAtOrBefore(starts, at + this.sought.length - 1)];
        this.hits.push(words.slice(first, last + 1).map((word) => word.element));
      }
    }
    for (const hit of this.hits) for (const element of hit) element.classList.add("hit");
    this.at = move ? -1 : Math.min(this.at, this.hits.length - 1);
    if (move) this.#go(1);
    else for (const element of this.hits[this.at] ?? []) element.classList.add("hit-now");
    this.#tell();
  }

  #go(step) {
    if (!this.hits.length) return;
    for (const element of this.hits[this.at] ?? []) element.classList.remove("hit-now");
    this.at = (this.at + step + this.hits.length) % this.hits.length;
    for (const element of this.hits[this.at]) element.classList.add("hit-now");
    keepInView(this.hits[this.at][0]);
    this.#tell();
  }

  #tell() {
    const none = !this.hits.length;
    $("next").disabled = none;
    $("previous").disabled = none;
    const values = { at: number(this.at + 1), count: number(this.hits.length) };
    $("hits").textContent = !this.sought ? "" : none ? t("noHits") : t("hits", values);
  }
}
