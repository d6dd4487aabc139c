/** Export: download the transcript in any format, or copy it as text. */

import { request } from "./api.js";
import { $, complain, h, toast } from "./dom.js";
import { t } from "./i18n.js";

const FORMATS = ["srt", "vtt", "txt", "tsv", "json", "aud", "ass", "md", "rttm"];
// The browser must have started the download before its address is revoked.
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
  // Close the menu when it loses the focus.
  document.addEventListener("click", (event) => menu.contains(event.target) || (menu.open = false));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  $("copy").addEventListener("click", () => copy(text()));
}

/** Download a format that the server renders, named after the recording. */
async function download({ id, name }, format) {
  // A link cannot send the key.
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
