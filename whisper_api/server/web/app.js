/** The page: creates its parts, and shows the job in the address, if there is one. */

import { forgetKey, patiently, storedKey } from "./api.js";
import { Composer } from "./composer.js";
import { $, complain, content, furnish, toast } from "./dom.js";
import { language, t } from "./i18n.js";
import { JobView } from "./job.js";
import { JobList } from "./jobs.js";
import { remember } from "./player.js";
import { Uploads } from "./uploads.js";

const JOB_ID = /^#([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$/;

document.documentElement.lang = language;
furnish();

const list = new JobList();
const view = new JobView(list);
const uploads = new Uploads($("uploads"), async (jobId, file) => {
  remember(jobId, file);
  await patiently(() => list.look(jobId));
});
const composer = new Composer(uploads, {
  // Not when the reader has opened another transcript meanwhile.
  onFirst: (jobId) => document.body.dataset.view === "home" && (location.hash = jobId),
});

/** Show the job in the address, and move the focus there unless the page was just `loaded`. */
function route(loaded = false) {
  const jobId = JOB_ID.exec(location.hash)?.[1] ?? null;
  content();
  list.mark(jobId);
  document.body.dataset.view = jobId ? "job" : "home";
  $("composer").hidden = Boolean(jobId);
  document.title = "Whisper API";
  if (jobId) view.open(jobId);
  else view.close();
  if (!loaded) $(jobId ? "job-title" : "main").focus({ preventScroll: true });
  scrollTo(0, 0);
}

addEventListener("hashchange", () => route());
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
$("forget").hidden = !storedKey();
$("forget").addEventListener("click", () => {
  forgetKey();
  location.reload();
});
addEventListener("unhandledrejection", (event) => complain(event.reason));

route(true);
list.load().catch(complain);
composer.learn().then((status) => {
  const hours = status?.resources?.job_retention_hours;
  if (hours) $("kept").textContent = t("kept", { count: hours });
});
