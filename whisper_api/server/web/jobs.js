/** The list of the caller's jobs, newest first; unfinished jobs are kept up to date. */

import { json, patiently } from "./api.js";
import { $, complain, h } from "./dom.js";
import { clock, moment, percent, t } from "./i18n.js";

const PAGE = 30;
const REFRESH_MILLISECONDS = 3000;

export const isOver = (status) => !["Queued", "Processing"].includes(status.status);
export const titleOf = (status) => status.file_name || t("untitled");

/** Position of a waiting job in the queue, as text. */
export const placeOf = ({ queue_position: position }) => t(position > 1 ? "queuedAt" : "queuedNext", { position });

/** Status of a job in one line. */
function factsOf(job) {
  const when = moment(job.created_at);
  if (job.status === "Queued") return `${placeOf(job)} · ${when}`;
  if (job.status === "Processing") return `${t("stage_running")} · ${percent(Math.min(0.99, job.progress ?? 0))}`;
  if (job.status === "Failed") return `${t("failed")} · ${when}`;
  return job.audio_seconds ? `${when} · ${clock(job.audio_seconds)}` : when;
}

export class JobList {
  constructor() {
    this.jobs = new Map();
    this.rows = new Map();
    this.removed = new Set();
    this.open = null;
    this.next = null;
    this.timer = 0;
    $("more").addEventListener("click", () => this.#more().catch(complain));
    document.addEventListener("visibilitychange", () => document.hidden || this.#refreshSoon());
  }

  /** Load the first page; retries until the server can be reached. */
  async load() {
    this.#take(await patiently(() => json("transcriptions", { query: { limit: PAGE } })));
    await this.#fill();
  }

  /** Mark the job that is shown. */
  mark(jobId) {
    this.open = jobId;
    for (const [id, row] of this.rows) {
      if (id === jobId) row.link.setAttribute("aria-current", "page");
      else row.link.removeAttribute("aria-current");
    }
  }

  /** Update the status of a job. */
  update(status) {
    this.#keep(status);
    this.#show();
  }

  remove(jobId) {
    this.removed.add(jobId);
    this.jobs.delete(jobId);
    this.#show();
  }

  /** Ignore jobs that were removed after the answer was made. */
  #keep(job) {
    if (!this.removed.has(job.job_id)) this.jobs.set(job.job_id, job);
  }

  #take(page) {
    for (const job of page.jobs) this.#keep(job);
    this.next = page.next;
    this.#show();
  }

  async #more() {
    const before = this.rows.size;
    this.#take(await json("transcriptions", { query: { limit: PAGE, after: this.next } }));
    await this.#fill();
    // Move the focus to the first new row, because the button may be hidden now.
    $("jobs").children[before]?.querySelector("a").focus();
  }

  /** Canceled and delivered jobs are not shown: load pages until half a page is shown. */
  async #fill() {
    while (this.next && this.#visible().length < PAGE / 2) {
      this.#take(await json("transcriptions", { query: { limit: PAGE, after: this.next } }));
    }
  }

  #visible() {
    const shown = [...this.jobs.values()].filter((job) => job.status !== "Canceled" && !job.result_gone);
    return shown.sort((one, two) => (one.created_at < two.created_at ? 1 : -1));
  }

  #show() {
    const visible = this.#visible();
    const ids = new Set(visible.map((job) => job.job_id));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    visible.forEach((job, place) => {
      const row = this.rows.get(job.job_id) ?? this.#row(job);
      row.name.textContent = titleOf(job);
      row.facts.textContent = factsOf(job);
      row.element.dataset.status = job.status;
      row.element.style.setProperty("--share", isOver(job) ? 0 : (job.progress ?? 0));
      // Move only rows whose position changes, so that the focus stays.
      if ($("jobs").children[place] !== row.element) $("jobs").insertBefore(row.element, $("jobs").children[place] ?? null);
    });
    $("no-jobs").hidden = visible.length > 0;
    $("more").hidden = !this.next;
    this.#refreshSoon();
  }

  #row(job) {
    const name = h("span", { class: "name" });
    const facts = h("span", { class: "facts" });
    const link = h("a", { href: `#${job.job_id}`, "aria-current": job.job_id === this.open && "page" }, name, facts);
    const row = { element: h("li", {}, link), link, name, facts };
    this.rows.set(job.job_id, row);
    return row;
  }

  #refreshSoon() {
    clearTimeout(this.timer);
    if (document.hidden || ![...this.jobs.values()].some((job) => !isOver(job))) return;
    this.timer = setTimeout(() => this.#refresh(), REFRESH_MILLISECONDS);
  }

  async #refresh() {
    try {
      const page = await json("transcriptions", { query: { limit: PAGE } });
      for (const job of page.jobs) this.#keep(job);
      // Unfinished jobs of later pages are rare, so each is requested by itself.
      const seen = new Set(page.jobs.map((job) => job.job_id));
      const older = [...this.jobs.values()].filter((job) => !isOver(job) && !seen.has(job.job_id));
      for (const job of older) await this.look(job.job_id);
    } catch {
      // The view of a job shows that the server cannot be reached; the list only retries.
    }
    this.#show();
  }

  /** Request the status of one job. */
  async look(jobId) {
    try {
      this.#keep(await json(`transcription/${jobId}`));
    } catch (error) {
      if (error.status !== 404) throw error;
      this.jobs.delete(jobId);
    }
    this.#show();
  }
}
