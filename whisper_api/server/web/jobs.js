/** The list of one's jobs: newest first, those that wait and run kept up to date. */

import { json, patiently } from "./api.js";
import { $, complain, h } from "./dom.js";
import { clock, moment, percent, t } from "./i18n.js";

const PAGE = 30;
const REFRESH_MILLISECONDS = 3000;

export const isOver = (status) => !["Queued", "Processing"].includes(status.status);
export const titleOf = (status) => status.file_name || t("untitled");

/** Where a job that waits stands in the queue. */
export const placeOf = ({ queue_position: position }) => t(position > 1 ? "queuedAt" : "queuedNext", { position });

/** In one line where a job stands. */
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

  /** Load the first page; waits for the server when it is away. */
  async load() {
    this.#take(await patiently(() => json("transcriptions", { query: { limit: PAGE } })));
    await this.#fill();
  }

  /** Mark the job that is shown, or none. */
  mark(jobId) {
    this.open = jobId;
    for (const [id, row] of this.rows) {
      if (id === jobId) row.link.setAttribute("aria-current", "page");
      else row.link.removeAttribute("aria-current");
    }
  }

  /** Where a job stands now, from whoever knows. */
  update(status) {
    this.#keep(status);
    this.#show();
  }

  remove(jobId) {
    this.removed.add(jobId);
    this.jobs.delete(jobId);
    this.#show();
  }

  /** An answer may be older than what was removed since. */
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
    // Reading goes on there, and the button may have gone.
    $("jobs").children[before]?.querySelector("a").focus();
  }

  /** Jobs that have nothing to show are left out: go on until there is something. */
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
      // Only what has another place is moved, so that the focus stays.
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
      // Those on later pages are asked for one by one: there are hardly ever any.
      const seen = new Set(page.jobs.map((job) => job.job_id));
      const older = [...this.jobs.values()].filter((job) => !isOver(job) && !seen.has(job.job_id));
      for (const job of older) await this.look(job.job_id);
    } catch {
      // Whoever watches a job tells that the server is away; the list just asks again.
    }
    this.#show();
  }

  /** Ask where one job stands. */
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
