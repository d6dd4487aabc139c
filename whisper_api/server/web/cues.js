/** The transcript as subtitles: their lines, their times and the rules that they break, each to be corrected in place. */

import { json, patiently } from "./api.js";
import { rewrite } from "./editing.js";
import { $, complain, h, icon, toast } from "./dom.js";
import { number, preciseClock, secondsOf, t } from "./i18n.js";
import { keepInView, lastAtOrBefore } from "./player.js";
import { COLOURS, shownSpeaker } from "./transcript.js";

const FOCUSABLE = "button, input, .w";

export class CueView {
  /** `given` has the transcript, the player, and `changed`, which shows the transcript anew after a correction. */
  constructor({ transcript, player, changed }) {
    Object.assign(this, { transcript, player, changed });
    this.list = $("cue-list");
    this.cues = [];
    this.marked = null;
    $("as-cues").addEventListener("click", () => this.#toggle());
    // The menu of downloads has the same choice, so that what is shown is what is exported.
    for (const [select, other] of [["preset", "cue-preset"], ["cue-preset", "preset"]]) {
      $(select).addEventListener("change", () => {
        $(other).value = $(select).value;
        this.refresh();
      });
    }
    this.list.addEventListener("click", (event) => this.#clicked(event));
    this.list.addEventListener("change", (event) => this.#timed(event));
    this.list.addEventListener("keydown", (event) => this.#pressed(event));
    for (const name of ["timeupdate", "seeked"]) player.audio.addEventListener(name, () => this.#follow());
  }

  /** Offer the subtitles of a completed job. */
  open(jobId, corrections) {
    Object.assign(this, { jobId, corrections });
  }

  close() {
    this.watch?.abort(new DOMException("another job is shown", "AbortError"));
    this.watch = null;
    this.list.replaceChildren();
    this.cues = [];
    this.marked = null;
    this.#show(false);
  }

  get shown() {
    return !$("cues").hidden;
  }

  /** The transcript has changed. */
  async refresh() {
    if (this.shown) await this.#load();
  }

  #show(shown) {
    $("cues").hidden = !shown;
    for (const element of [$("transcript"), $("transcript-hint"), $("search").parentNode]) element.classList.toggle("put-away", shown);
    $("as-cues").setAttribute("aria-pressed", shown);
  }

  #toggle() {
    if (this.shown) {
      this.close();
      return;
    }
    // Subtitles without rules are whole sentences; those who open this view want subtitles to show.
    $("preset").value ||= "default";
    $("cue-preset").value = $("preset").value;
    this.#show(true);
    this.#load();
  }

  async #load() {
    this.watch?.abort(new DOMException("other rules were chosen", "AbortError"));
    this.watch = new AbortController();
    const { signal } = this.watch;
    const query = { format: "cues", subtitle_preset: $("preset").value };
    try {
      this.cues = (await patiently(() => json(`transcription/${this.jobId}/result`, { query, signal }), signal)).cues;
    } catch (error) {
      complain(error);
      return;
    }
    const focus = this.#focused();
    this.entries = this.#entriesBySegment();
    this.starts = Float64Array.from(this.cues, (cue) => cue.start);
    this.list.replaceChildren(...this.cues.map((cue, index) => this.#item(cue, index)));
    this.marked = null;
    const broken = this.cues.filter((cue) => cue.broken.length).length;
    $("cue-count").textContent = t("cueCount", { count: this.cues.length, broken: number(broken), number: number(this.cues.length) });
    focus();
    this.#follow();
  }

  /** A function that gives the focus back to what has it now, when the list is made anew. */
  #focused() {
    const element = document.activeElement;
    const item = element?.closest?.(".cue");
    if (!item || !this.list.contains(item)) return () => {};
    const index = [...this.list.children].indexOf(item);
    const place = [...item.querySelectorAll(FOCUSABLE)].indexOf(element);
    return () => {
      const elements = [...(this.list.children[Math.min(index, this.list.children.length - 1)]?.querySelectorAll(FOCUSABLE) ?? [])];
      elements[Math.min(Math.max(place, 0), elements.length - 1)]?.focus();
    };
  }

  /** The transcript's words by segment, in order: a subtitle names a word by its place among those that are left. */
  #entriesBySegment() {
    const found = new Map();
    for (const entry of this.transcript.words) {
      if (!found.has(entry.segment)) found.set(entry.segment, []);
      found.get(entry.segment).push(entry);
    }
    return found;
  }

  #entryOf({ segment, word }) {
    return this.entries.get(segment)?.[word ?? 0];
  }

  #item(cue, index) {
    const place = this.transcript.speakers.indexOf(cue.speakers[0]);
    const time = (edge) =>
      h("input", {
        class: "cue-time",
        value: preciseClock(cue[edge]),
        "data-edge": edge,
        "data-index": index,
        inputmode: "decimal",
        autocomplete: "off",
        "aria-label": t(edge === "start" ? "cueStart" : "cueEnd", { number: number(index + 1) }),
      });
    const play = h("button", { type: "button", class: "icon quiet cue-play", "data-index": index, "aria-label": t("cuePlay", { number: number(index + 1) }) }, icon("play"));
    const rules = cue.broken.map((name) => h("li", {}, t(`rule_${name}`)));
    return h(
      "li",
      { class: "cue", "data-colour": place < 0 ? null : place % COLOURS },
      h("div", { class: "cue-times" }, play, time("start"), h("span", { "aria-hidden": "true" }, "→"), time("end")),
      h("p", { class: "cue-text", dir: "auto" }, ...cue.lines.map((line, row) => this.#line(line, row === 0))),
      rules.length ? h("ul", { class: "cue-broken" }, ...rules) : null,
    );
  }

  #line({ mark, words }, first) {
    const pieces = words.flatMap((word) => {
      const shown = h("span", { class: "w", role: "button", tabindex: -1 }, word.text);
      shown.word = word;
      return word.space ? [" ", shown] : [shown];
    });
    // The tab key reaches the first word of a subtitle, and the arrow keys the others.
    if (first) pieces.find((piece) => piece.tabIndex === -1)?.setAttribute("tabindex", 0);
    const label = /^\[(.*)\]: $/.exec(mark);
    return h("span", { class: "cue-line" }, label ? `[${shownSpeaker(label[1])}]: ` : mark, ...pieces);
  }

  #clicked(event) {
    const play = event.target.closest(".cue-play");
    const word = event.target.closest(".w");
    if (play) this.player.playFrom(this.cues[play.dataset.index].start);
    else if (word && event.detail > 1) this.#edit(word);
    else if (word && getSelection().isCollapsed) this.player.playFrom(word.word.start);
  }

  #pressed(event) {
    const { target, key } = event;
    if (!target.classList.contains("w") || event.altKey || event.metaKey) return;
    if (["F2", "Enter"].includes(key)) this.#edit(target);
    else if (key === " ") this.player.playFrom(target.word.start);
    else if (["ArrowLeft", "ArrowRight"].includes(key)) {
      const all = [...this.list.querySelectorAll(".w")];
      all[all.indexOf(target) + (key === "ArrowLeft" ? -1 : 1)]?.focus();
    } else return;
    event.preventDefault();
  }

  #edit(element) {
    const entry = this.#entryOf(element.word);
    if (!entry) return;
    this.player.audio.pause();
    // A word may be divided between two lines, and text without word times is corrected as a whole.
    const text = entry.element.textContent;
    rewrite(element, { text, label: t("correctWord", { word: text }), save: (written) => this.#keep(this.corrections.setWord(entry, written)) });
  }

  /** The start of a subtitle is that of its first word, and the end that of its last. */
  #timed(event) {
    const { edge, index } = event.target.dataset;
    if (!edge) return;
    const cue = this.cues[index];
    const seconds = secondsOf(event.target.value);
    if (seconds === null) {
      event.target.value = preciseClock(cue[edge]);
      complain(new Error(t("noTime")));
      return;
    }
    const words = cue.lines.flatMap((line) => line.words);
    const entry = this.#entryOf(words.at(edge === "start" ? 0 : -1));
    if (entry) this.#keep(this.corrections.setTime(entry, edge, seconds));
  }

  async #keep(change) {
    const { corrections } = this;
    try {
      await change;
      // Another transcript may be shown meanwhile.
      if (this.corrections !== corrections) return;
      await this.changed();
      toast(t("corrected"));
    } catch (error) {
      complain(error);
    }
    if (this.corrections === corrections) await this.refresh();
  }

  /** Mark the subtitle that is heard now. */
  #follow() {
    if (!this.shown || !this.cues.length) return;
    const now = this.player.audio.currentTime;
    const index = lastAtOrBefore(this.starts, now + 0.02);
    const item = index >= 0 && now <= this.cues[index].end ? this.list.children[index] : null;
    if (item === this.marked) return;
    this.marked?.removeAttribute("aria-current");
    this.marked = item;
    item?.setAttribute("aria-current", "true");
    if (item && !this.player.audio.paused) keepInView(item);
  }
}
