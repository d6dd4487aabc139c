/** The view of one job: its progress, its transcript while it grows, and the actions. */

import { json, patiently, request } from "./api.js";
import { CueView } from "./cues.js";
import { $, announce, complain, confirmed, h, leave } from "./dom.js";
import { Corrections, editWord, renameSpeaker } from "./editing.js";
import { follow } from "./events.js";
import { languageName, span, t, clock, moment } from "./i18n.js";
import { isOver, placeOf, titleOf } from "./jobs.js";
import { noted } from "./notes.js";
import { forget, isHeard, Player } from "./player.js";
import { Search } from "./search.js";
import { offerToTake } from "./taking.js";
import { COLOURS, shownSpeaker, Transcript } from "./transcript.js";

const byTouch = matchMedia("(pointer: coarse)").matches;
const DOUBLE_TAP = 400;
const GONE = ["result_gone", "job_canceled", "job_failed"];

export class JobView {
  constructor(list) {
    this.list = list;
    this.transcript = new Transcript($("transcript"));
    this.player = new Player(this.transcript);
    this.search = new Search(this.transcript);
    this.cues = new CueView({ transcript: this.transcript, player: this.player, changed: () => this.#redraw() });
    this.transcript.onChange = () => {
      this.player.refresh();
      this.search.refresh();
    };
    this.watch = null;
    this.#listen();
  }

  /** Show this job, until another is shown or the view is closed. */
  async open(jobId) {
    this.close();
    this.watch = new AbortController();
    this.jobId = jobId;
    const { signal } = this.watch;
    $("job").hidden = false;
    try {
      await this.#show(signal);
    } catch (error) {
      if (signal.aborted) return;
      this.#clearProgress();
      this.list.look(jobId).catch(() => {});
      complain(error);
    }
  }

  close() {
    this.watch?.abort(new DOMException("another job is shown", "AbortError"));
    this.watch = null;
    this.player.close();
    this.cues.close();
    this.search.clear();
    this.transcript.clear();
    $("transcript").removeAttribute("lang");
    this.corrections = null;
    this.result = null;
    for (const id of ["job", "tools", "warnings", "transcript-hint", "legend", "failure"]) $(id).hidden = true;
    this.#clearProgress();
    $("job-title").textContent = "";
    $("facts").textContent = "";
    $("download").open = false;
  }

  async #show(signal) {
    const status = () => patiently(() => json(`transcription/${this.jobId}`, { signal }), signal, (error) => this.#trouble(error));
    this.#stand(await status());
    while (!isOver(this.status)) {
      await follow(this.jobId, {
        signal,
        onTrouble: (error) => this.#trouble(error),
        onEvent: (name, data) => this.#happened(name, data),
      });
      this.#stand(await status());
    }
    this.#clearProgress();
    if (this.status.status === "Completed") await this.#showResult(signal);
    else this.#showEnd();
  }

  /** Show the status of the job at the top and in the list. */
  #stand(status) {
    this.status = status;
    this.list.update(status);
    $("job-title").textContent = document.title = titleOf(status);
    this.#showFacts();
    if (!isOver(status)) this.#showProgress();
  }

  #happened(name, data) {
    if (name === "queued") {
      // The job is queued again and starts over, so its partial text is removed.
      this.transcript.clear();
      this.player.open(this.jobId, false);
      this.#stand({ ...this.status, status: "Queued", queue_position: data.queue_position, progress: 0, stage: null, eta_seconds: null });
    } else if (name === "progress") {
      const { progress, stage, eta_seconds = null } = data;
      this.#stand({ ...this.status, status: "Processing", progress, stage, eta_seconds });
    } else if (name === "segment") {
      this.transcript.showStretch(data.index, data.segments);
      this.player.open(this.jobId, isHeard(this.jobId));
    }
  }

  #showProgress() {
    const { status, stage, eta_seconds: left, progress } = this.status;
    $("progress").hidden = false;
    const what = status === "Queued" ? placeOf(this.status) : t(`stage_${stage ?? "running"}`);
    const text = left === null || left === undefined ? what : `${what} · ${t("left", { time: span(left) })}`;
    if ($("progress-text").textContent !== text) $("progress-text").textContent = text;
    if (this.told !== what) announce((this.told = what));
    if (status === "Queued") $("progress-bar").removeAttribute("value");
    else $("progress-bar").value = progress ?? 0;
    $("transcript").setAttribute("aria-busy", "true");
  }

  #clearProgress() {
    $("progress").hidden = true;
    $("transcript").removeAttribute("aria-busy");
    this.told = "";
    this.#trouble(null);
  }

  /** Show that the server cannot be reached, or is back. */
  #trouble(error) {
    const text = error?.status ? error.message : t("away");
    if (error && $("trouble").hidden) announce(text);
    $("trouble").hidden = !error;
    $("trouble").textContent = error ? text : "";
  }

  async #showResult(signal) {
    const ask = (path) => patiently(() => json(`transcription/${this.jobId}/${path}`, { signal }), signal, (error) => this.#trouble(error));
    try {
      const [result, kept] = await Promise.all([ask("result"), ask("corrections")]);
      this.result = result;
      this.corrections = new Corrections(this.jobId, kept);
    } catch (error) {
      if (GONE.includes(error.code)) this.list.update({ ...this.status, result_gone: true });
      throw error;
    }
    this.#clearProgress();
    $("transcript").lang = this.result.language;
    this.transcript.showResult(this.result, this.corrections.kept);
    const [any, anybody] = [this.transcript.words.length > 0, this.result.segments.length + (this.result.turns ?? []).length > 0];
    this.player.open(this.jobId, anybody);
    this.player.refresh(this.result.duration);
    this.cues.open(this.jobId, this.corrections);
    for (const element of [$("as-cues"), $("copy"), $("search").parentNode]) element.hidden = !any;
    this.#showFacts();
    this.#showWarnings();
    this.#showLegend();
    $("tools").hidden = false;
    $("transcript-hint").hidden = false;
    $("transcript-hint").textContent = t(!anybody ? "nobodySpeaks" : !any ? "turnsHint" : byTouch ? "transcriptHintTouch" : "transcriptHint");
    announce(t("done"));
  }

  #showEnd() {
    this.transcript.clear();
    this.player.close();
    if (this.status.status !== "Failed") {
      leave();
      return;
    }
    $("failure").hidden = false;
    $("reason").textContent = this.status.error ?? "";
    announce(t("failedBecause"));
  }

  #showFacts() {
    const { created_at: created, audio_seconds: length } = this.status;
    const seconds = this.result?.duration ?? length;
    const facts = [moment(created), seconds && clock(seconds), this.result && (this.result.languages ?? [this.result.language]).map(languageName).join(", "), this.result?.model];
    $("facts").textContent = facts.filter(Boolean).join(" · ");
  }

  #showWarnings() {
    const { warnings } = this.result;
    $("warnings").hidden = !warnings.length;
    $("warnings").querySelector("summary").textContent = t("warnings", { count: warnings.length });
    $("warnings").querySelector("ul").replaceChildren(...warnings.map(noted).map(([text, lang]) => h("li", { lang }, text)));
  }

  /** The list of speakers, where they can be renamed with the keyboard. */
  #showLegend() {
    const { speakers } = this.transcript;
    const focused = [...$("legend-names").children].findIndex((each) => each.contains(document.activeElement));
    $("legend").hidden = speakers.length === 0;
    $("legend-names").replaceChildren(
      ...speakers.map((name, place) => {
        const button = h("button", { type: "button", class: "speaker", "data-name": name, title: t("rename") }, shownSpeaker(name));
        return h("li", { "data-colour": place % COLOURS }, button);
      }),
    );
    // Keep the focus on the speaker who was just renamed.
    if (focused >= 0) $("legend-names").children[Math.min(focused, speakers.length - 1)]?.firstChild.focus();
  }

  #listen() {
    offerToTake({ text: () => this.transcript.text, job: () => ({ id: this.jobId, name: titleOf(this.status) }) });
    $("cancel").addEventListener("click", () => this.#cancel());
    $("delete").addEventListener("click", () => this.#delete());
    // A failed job has no transcript to lose.
    $("discard-failed").addEventListener("click", () => this.#remove(this.jobId, {}));
    $("legend-names").addEventListener("click", (event) => this.#clicked(event));
    $("transcript").addEventListener("click", (event) => this.#clicked(event));
    $("transcript").addEventListener("keydown", (event) => {
      const entry = this.transcript.entryOf(event.target);
      if (!entry || !["F2", "Enter", " "].includes(event.key)) return;
      event.preventDefault();
      if (event.key === " ") this.player.playFrom(entry.start);
      else this.#edit(entry);
    });
  }

  #clicked(event) {
    const speaker = event.target.closest(".speaker");
    const time = event.target.closest(".at");
    const entry = this.transcript.entryOf(event.target);
    const { corrections } = this;
    if (speaker && corrections) {
      renameSpeaker(speaker, corrections, (names) => {
        // Another transcript may be shown meanwhile.
        if (this.corrections !== corrections) return;
        this.transcript.rename(names);
        // Speakers with the same name are the same person.
        if (new Set(this.transcript.speakers).size < this.#legendSize) this.#redraw();
        else this.#showLegend();
        this.cues.refresh();
      });
    } else if (time) this.player.playFrom(Number(time.dataset.start));
    else if (entry) this.#clickedWord(entry, event);
  }

  /** One click plays from a word, two correct it. Browsers do not count double taps, so this counts them. */
  #clickedWord(entry, event) {
    const twice = event.detail > 1 || (this.tapped?.entry === entry && event.timeStamp - this.tapped.at < DOUBLE_TAP);
    this.tapped = twice ? null : { entry, at: event.timeStamp };
    if (twice) this.#edit(entry);
    // Dragging selects text.
    else if (getSelection().isCollapsed) {
      if (this.corrections) this.transcript.select(entry);
      this.player.playFrom(entry.start);
    }
  }

  get #legendSize() {
    return $("legend-names").children.length;
  }

  async #redraw() {
    const { corrections } = this;
    const result = await json(`transcription/${this.jobId}/result`);
    if (this.corrections !== corrections) return;
    const focused = $("transcript").contains(document.activeElement);
    this.result = result;
    this.transcript.showResult(result, corrections.kept);
    this.#showLegend();
    if (focused) $("legend-names").querySelector(".speaker")?.focus();
  }

  #edit(entry) {
    if (!entry || !this.corrections) return;
    this.player.audio.pause();
    this.transcript.select(entry);
    editWord(this.transcript, this.corrections, entry, () => this.search.refresh());
  }

  async #cancel() {
    const { jobId } = this;
    if (!(await confirmed(t("cancelTitle"), t("cancelWords"), t("cancel")))) return;
    // The job may have completed while the dialog was open: do not delete its transcript without asking.
    if (this.jobId === jobId && isOver(this.status)) return;
    await this.#remove(jobId, { force: "true" });
  }

  async #delete() {
    const { jobId } = this;
    if (await confirmed(t("deleteTitle"), t("deleteWords"), t("delete"))) await this.#remove(jobId, {});
  }

  async #remove(jobId, query) {
    try {
      await request(`transcription/${jobId}`, { method: "DELETE", query });
    } catch (error) {
      // The job had ended meanwhile; the view shows how.
      complain(error);
      return;
    }
    forget(jobId);
    this.list.remove(jobId);
    if (this.jobId === jobId) leave();
  }
}
