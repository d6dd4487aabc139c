/** The transcript on the page: paragraphs of words, each with its time and position. */

import { h } from "./dom.js";
import { clock, preciseClock, t } from "./i18n.js";

// A paragraph ends at a pause once it has some length, and at the next sentence once it is long.
const PAUSE_SECONDS = 1.2;
const SHORT_WORDS = 40;
const LONG_WORDS = 110;
export const COLOURS = 8;

/** The name of a speaker for display: a label without a name becomes "Speaker 1". */
export function shownSpeaker(name) {
  const label = /^SPEAKER_(\d+)$/.exec(name);
  return label ? t("speakerNumber", { number: Number(label[1]) + 1 }) : name;
}

/**
 * What is shown in `root`. An entry of `words` is {element, start, end, segment, word}: seconds, the segment's id, and
 * the number of the word in it as it was recognised, or null where the segment has no words.
 */
export class Transcript {
  constructor(root) {
    this.root = root;
    this.counting = 0;
    this.clear();
    root.addEventListener("keydown", (event) => this.#move(event));
  }

  clear() {
    this.root.replaceChildren();
    this.words = [];
    this.speakers = [];
    this.entries = new WeakMap();
    this.stretches = new Map();
    this.current = null;
  }

  /** Show the text of one window, instead of its earlier text. */
  showStretch(index, segments) {
    const fresh = h("div", { class: "stretch" }, ...this.#paragraphs(segments, () => 0));
    const before = this.stretches.get(index);
    if (before) before.replaceWith(fresh);
    else {
      const later = [...this.stretches.keys()].filter((other) => other > index);
      const next = later.length ? this.stretches.get(Math.min(...later)) : null;
      this.root.insertBefore(fresh, next);
    }
    this.stretches.set(index, fresh);
    // A page that is opened late gets hours of text at once.
    this.counting ||= requestAnimationFrame(() => {
      this.counting = 0;
      this.recount();
    });
  }

  /** Show the whole transcript. It contains the `corrections`, which say which words were removed or changed. */
  showResult(result, corrections) {
    this.clear();
    this.speakers = result.speakers;
    const changed = new Map();
    for (const each of corrections.words) {
      const places = changed.get(each.segment) ?? new Map();
      if (each.text !== undefined) changed.set(each.segment, places.set(each.word ?? null, each.text));
    }
    const { segments, turns = [] } = result;
    this.root.append(...(segments.length ? this.#turns(segments, changed) : turns.map((turn) => this.#bareTurn(turn))));
    this.recount();
    if (this.words.length) this.select(this.words[0]);
  }

  /** The word of an element or of its parent. */
  entryOf(element) {
    const found = element.closest?.(".w");
    return found ? this.entries.get(found) : undefined;
  }

  /** The transcript as plain text, with a paragraph for each speaker. */
  get text() {
    const parts = [...this.root.querySelectorAll(".turn")].map((turn) => {
      const name = turn.querySelector(".speaker")?.textContent;
      const text = [...turn.querySelectorAll(".text")].map((each) => each.textContent.trim().replace(/\s+/g, " ")).join("\n");
      return name ? `${name}: ${text}` : text;
    });
    return parts.join("\n\n");
  }

  /** Rename speakers; `names` maps the shown names to the new ones. */
  rename(names) {
    for (const element of this.root.querySelectorAll(".speaker")) {
      const name = names.get(element.dataset.name);
      if (name === undefined) continue;
      element.dataset.name = name;
      element.textContent = shownSpeaker(name);
    }
    this.speakers = [...new Set(this.speakers.map((name) => names.get(name) ?? name))];
  }

  /** Remove a word. HTML shows the two spaces that remain as one. */
  remove(entry) {
    const focused = document.activeElement === entry.element;
    this.select(this.#neighbour(entry, 1) ?? this.#neighbour(entry, -1) ?? entry);
    entry.element.remove();
    if (focused) this.current.element.focus();
    this.recount();
  }

  #turns(segments, changed) {
    const turns = [];
    let begin = 0;
    for (let end = 1; end <= segments.length; end += 1) {
      if (end < segments.length && segments[end].speaker === segments[begin].speaker) continue;
      const speaker = segments[begin].speaker;
      const colour = speaker === null ? null : this.speakers.indexOf(speaker) % COLOURS;
      const paragraphs = this.#paragraphs(segments.slice(begin, end), (segment) => changed.get(segment.id));
      const turn = h("section", { class: "turn", "data-colour": colour }, ...paragraphs);
      if (speaker !== null) {
        const name = h("button", { type: "button", class: "speaker", tabindex: -1, "data-name": speaker }, shownSpeaker(speaker));
        // The time that the first paragraph begins at stands beside the name.
        turn.prepend(h("div", { class: "turn-head" }, h("h2", {}, name), turn.querySelector(".at")));
      }
      turns.push(turn);
      begin = end;
    }
    return turns;
  }

  /** Who speaks from when to when, where the text was not asked for. */
  #bareTurn({ speaker, start, end }) {
    const name = h("button", { type: "button", class: "speaker", tabindex: -1, "data-name": speaker }, shownSpeaker(speaker));
    const time = h("span", { class: "at", "data-start": start }, `${preciseClock(start)} – ${preciseClock(end)}`);
    return h("section", { class: "turn", "data-colour": this.speakers.indexOf(speaker) % COLOURS }, h("div", { class: "turn-head" }, h("h2", {}, name), time));
  }

  #paragraphs(segments, changesOf) {
    const paragraphs = [];
    let text = null;
    let count = 0;
    let ended = 0;
    let language = null;
    for (const segment of segments) {
      const pause = segment.start - ended;
      const turns = (segment.language ?? null) !== language;
      language = segment.language ?? null;
      if (!text || turns || count > LONG_WORDS || (count > SHORT_WORDS && pause > PAUSE_SECONDS)) {
        text = h("span", { class: "text", lang: language });
        const time = h("span", { class: "at", "data-start": segment.start }, clock(segment.start));
        paragraphs.push(h("p", { dir: "auto" }, time, text));
        count = 0;
      }
      text.append(...this.#spans(segment, changesOf(segment) || null), " ");
      count += segment.words.length || 20;
      ended = segment.end;
    }
    return paragraphs;
  }

  /** The text of a segment, with an element for each word and the spacing as it is. */
  #spans(segment, changes) {
    if (!segment.words.length) {
      return [this.#word(segment.text, { start: segment.start, end: segment.end, segment: segment.id, word: null }, changes)];
    }
    const pieces = [];
    let [position, place] = [0, 0];
    for (const word of segment.words) {
      // Removed words are counted, too.
      while (changes?.get(place) === "") place += 1;
      const begin = segment.text.indexOf(word.word, position);
      const between = begin >= 0 ? segment.text.slice(position, begin) : pieces.length ? " " : "";
      if (between) pieces.push(between);
      if (begin >= 0) position = begin + word.word.length;
      pieces.push(this.#word(word.word, { start: word.start, end: word.end, segment: segment.id, word: place }, changes));
      place += 1;
    }
    // Text outside of words, such as a punctuation mark by itself.
    pieces.push(segment.text.slice(position));
    return pieces;
  }

  #word(text, place, changes) {
    const element = document.createElement("span");
    element.className = changes?.has(place.word) ? "w corrected" : "w";
    element.textContent = text;
    this.entries.set(element, { ...place, element });
    return element;
  }

  /** Renumber the words after elements were added or removed. */
  recount() {
    this.words = Array.from(this.root.getElementsByClassName("w"), (element) => this.entries.get(element));
    this.words.forEach((entry, index) => (entry.index = index));
    this.onChange?.();
  }

  #neighbour(entry, step) {
    return this.words[entry.index + step];
  }

  /** The tab key focuses one of the words, and the arrow keys move from there. */
  select(entry) {
    const before = this.current?.element;
    if (before === entry.element) return;
    for (const name of ["tabindex", "role", "aria-describedby"]) before?.removeAttribute(name);
    this.current = entry;
    entry.element.tabIndex = 0;
    entry.element.setAttribute("role", "button");
    entry.element.setAttribute("aria-describedby", "transcript-hint");
  }

  #move(event) {
    const entry = this.entryOf(event.target);
    if (!entry || event.target !== entry.element || event.altKey || event.metaKey) return;
    const paragraph = (step) => {
      const all = [...this.root.querySelectorAll(".text")];
      const beside = all[all.indexOf(entry.element.closest(".text")) + step];
      return beside ? this.entryOf(beside.querySelector(".w")) : undefined;
    };
    const moves = {
      ArrowRight: () => this.#neighbour(entry, 1),
      ArrowLeft: () => this.#neighbour(entry, -1),
      ArrowDown: () => paragraph(1),
      ArrowUp: () => paragraph(-1),
      Home: () => (event.ctrlKey ? this.words[0] : this.entryOf(entry.element.closest(".text").querySelector(".w"))),
      End: () => (event.ctrlKey ? this.words.at(-1) : [...entry.element.closest(".text").querySelectorAll(".w")].map((each) => this.entryOf(each)).at(-1)),
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const target = moves[event.key]();
    if (!target) return;
    this.select(target);
    target.element.focus();
  }
}
