/** The player: plays audio that this browser has, and marks the current word. */

import { $, complain, icon } from "./dom.js";
import { clock, t } from "./i18n.js";

// Seconds that the mark stays on a word when no word follows.
const LINGER_SECONDS = 0.4;
// Milliseconds after scrolling by hand in which the page does not scroll by itself.
const SCROLL_REST = 4000;

// Files chosen or recorded since the page was loaded, by job: the server deletes the audio when a job has ended.
const heard = new Map();
export const remember = (jobId, audio) => heard.set(jobId, audio);
export const isHeard = (jobId) => heard.has(jobId);
export const forget = (jobId) => heard.delete(jobId);

export class Player {
  constructor(transcript) {
    this.transcript = transcript;
    this.audio = $("audio");
    this.jobId = null;
    this.length = 0;
    this.words = [];
    this.starts = new Float64Array();
    this.marked = null;
    this.scrolled = -SCROLL_REST;
    this.url = null;
    this.measuring = false;
    this.#listen();
  }

  /** Show the player for a job, with its audio when there is some, and without when `shown` is false. */
  open(jobId, shown) {
    const audio = heard.get(jobId);
    if (jobId !== this.jobId || !shown || Boolean(audio) !== Boolean(this.url)) {
      this.close();
      this.jobId = jobId;
      if (audio && shown) {
        this.url = URL.createObjectURL(audio);
        this.audio.src = this.url;
      }
    }
    $("player").hidden = !shown;
    document.body.classList.toggle("with-player", shown);
    $("player-controls").hidden = !audio;
    $("player-missing").hidden = Boolean(audio);
  }

  close() {
    this.audio.pause();
    this.#mark(null);
    if (this.url) {
      this.audio.removeAttribute("src");
      this.audio.load();
      URL.revokeObjectURL(this.url);
    }
    this.url = null;
    $("player").hidden = true;
    document.body.classList.remove("with-player");
  }

  /** Use these words, which may have changed. `length` is the length of the audio in seconds, if it is known. */
  refresh(length = this.length) {
    this.length = length;
    this.words = [...this.transcript.words].sort((a, b) => a.start - b.start);
    this.starts = Float64Array.from(this.words, (word) => word.start);
    this.marked = null;
    this.#show();
  }

  /** Play from this second on. */
  playFrom(seconds) {
    if (!this.url) {
      $("choose-audio").focus();
      return;
    }
    this.#seek(seconds);
    this.#play();
  }

  #listen() {
    const { audio } = this;
    $("play").addEventListener("click", () => (audio.paused ? this.#play() : audio.pause()));
    $("seek").addEventListener("input", () => this.#seek(Number($("seek").value)));
    $("speed").addEventListener("change", () => (audio.playbackRate = Number($("speed").value)));
    $("choose-audio").addEventListener("click", () => $("audio-file").click());
    $("audio-file").addEventListener("change", () => {
      const [file] = $("audio-file").files;
      $("audio-file").value = "";
      if (!file) return;
      remember(this.jobId, file);
      this.open(this.jobId, true);
      $("play").focus();
    });
    audio.addEventListener("loadedmetadata", () => {
      // The file of a browser's recorder lacks its length; the browser finds it when it seeks far beyond the end.
      this.measuring = audio.duration === Infinity;
      if (this.measuring) audio.currentTime = Number.MAX_SAFE_INTEGER;
      audio.playbackRate = Number($("speed").value);
      this.#show();
    });
    audio.addEventListener("seeked", () => {
      if (this.measuring) audio.currentTime = 0;
      this.measuring = false;
    });
    audio.addEventListener("error", () => this.#cannotPlay());
    audio.addEventListener("durationchange", () => this.#show());
    for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, () => this.#show());
    for (const name of ["seeked", "timeupdate"]) audio.addEventListener(name, () => audio.paused && this.#follow());
    audio.addEventListener("play", () => this.#run());
    for (const name of ["wheel", "touchmove"])
      addEventListener(name, () => (this.scrolled = performance.now()), { passive: true });
    this.#show();
  }

  /** The browser cannot play every format that the server reads: offer to choose another file. */
  #cannotPlay() {
    if (!this.url) return;
    const focused = $("player-controls").contains(document.activeElement);
    complain(new Error(t("cannotPlay")));
    forget(this.jobId);
    this.open(this.jobId, true);
    if (focused) $("choose-audio").focus();
  }

  get #total() {
    return Number.isFinite(this.audio.duration) && this.audio.duration > 0 ? this.audio.duration : this.length;
  }

  #play() {
    this.scrolled = -SCROLL_REST;
    // A pause before the start is not an error.
    this.audio.play().catch(() => this.#show());
  }

  #seek(seconds) {
    this.audio.currentTime = seconds;
    this.#follow();
  }

  /** While the audio plays, find the current word once per animation frame. */
  #run() {
    if (this.audio.paused) return;
    this.#follow();
    requestAnimationFrame(() => this.#run());
  }

  #follow() {
    if (this.measuring) return;
    const now = this.audio.currentTime;
    if (document.activeElement !== $("seek") || !this.audio.paused) $("seek").value = now;
    const text = clock(now);
    if ($("time").textContent !== text) {
      $("time").textContent = text;
      $("seek").setAttribute("aria-valuetext", t("positionOf", { at: text, total: clock(this.#total) }));
    }
    const word = this.words[lastAtOrBefore(this.starts, now + 0.02)] ?? null;
    this.#mark(word && now <= word.end + LINGER_SECONDS ? word : null);
  }

  #mark(word) {
    if (word === this.marked) return;
    this.marked?.element.classList.remove("now");
    this.marked = word;
    word?.element.classList.add("now");
    if (word && !this.audio.paused && performance.now() - this.scrolled > SCROLL_REST) keepInView(word.element);
  }

  #show() {
    const playing = !this.audio.paused;
    const shown = playing ? "pause" : "play";
    if ($("play").dataset.shown !== shown) {
      $("play").dataset.shown = shown;
      $("play").replaceChildren(icon(shown));
      $("play").setAttribute("aria-label", t(shown));
    }
    $("seek").max = this.#total || 1;
    $("total").textContent = clock(this.#total);
    this.#follow();
  }
}

/** Index of the last of these ascending numbers that is not above `value`; -1 if there is none. */
export function lastAtOrBefore(numbers, value) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Scroll only when the element is outside the middle of the screen. */
export function keepInView(element) {
  const { top, bottom } = element.getBoundingClientRect();
  if (top > 80 && bottom < innerHeight - 140) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "center", behavior: calm ? "auto" : "smooth" });
}
