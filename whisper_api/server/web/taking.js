/** Taking the transcript along: as a file of any format, or copied as text. */

import { request } from "./api.js";
import { $, complain, h, toast } from "./dom.js";
import { t } from "./i18n.js";

const FORMATS = ["srt", "vtt", "txt", "tsv", "json", "aud"];
// A browser has to have taken a file up before its address goes.
const TAKEN_MILLISECONDS = 60_000;

/** Fill the menu of formats; `job` gives the id and the name of the job that is shown, `text` its transcript. */
export function offerToTake({ job, text }) {
  const menu = $("download");
  const choice = (format) => {
    const chosen = () => {
      menu.open = false;
      download(job(), format).catch(complain);
    };
    const name = h("b", {}, format.toUpperCase());
    return h("li", {}, h("button", { type: "button", class: "quiet", onclick: chosen }, name, ` ${t(`format_${format}`)}`));
  };
  $("formats").append(...FORMATS.map(choice));
  // A menu that is left is closed.
  document.addEventListener("click", (event) => menu.contains(event.target) || (menu.open = false));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  $("copy").addEventListener("click", () => copy(text()));
}

/** Have the server render a format, and hand it over under the recording's name. */
async function download({ id, name }, format) {
  // A link could not send the key along.
  const response = await request(`transcription/${id}/result`, { query: { format } });
  const url = URL.createObjectURL(await response.blob());
  const stem = name.replace(/\.[^.]{1,5}$/, "") || name;
  h("a", { href: url, download: `${stem}.${format}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), TAKEN_MILLISECONDS);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch {
    complain(new Error(t("notCopied")));
  }
}
