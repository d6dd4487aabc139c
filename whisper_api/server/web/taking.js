/** Export: download the transcript in any format, or copy it as text. */

import { request } from "./api.js";
import { $, complain, h, toast } from "./dom.js";
import { t } from "./i18n.js";
import { noted } from "./notes.js";

const FORMATS = ["srt", "vtt", "txt", "tsv", "json", "aud", "ass", "md", "docx", "rttm", "cues"];
const SUBTITLES = ["srt", "vtt", "ass", "cues"];
const PRESETS = ["", "default", "netflix", "bbc"];
// A warning in a Warning header (RFC 7234, section 5.5).
const WARNING = /\b299 - "((?:[^"\\]|\\.)*)"/g;
// The browser must have started the download before its address is revoked.
const TAKEN_MILLISECONDS = 60_000;

/** Fill the menu of formats; `job` gives the id and the name of the job that is shown, `text` its transcript. */
export function offerToTake({ job, text }) {
  const menu = $("download");
  const choice = (format) => {
    const chosen = () => {
      menu.open = false;
      download(job(), format, SUBTITLES.includes(format) ? $("preset").value : "").catch(complain);
    };
    const name = h("b", {}, format.toUpperCase());
    return h("li", {}, h("button", { type: "button", class: "quiet", onclick: chosen }, name, ` ${t(`format_${format}`)}`));
  };
  for (const select of [$("preset"), $("cue-preset")])
    select.append(...PRESETS.map((preset) => h("option", { value: preset }, t(`preset_${preset || "none"}`))));
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

/** Download a format that the server renders, named after the recording, and tell which rules its subtitles break. */
async function download({ id, name }, format, preset) {
  // A link cannot send the key.
  const response = await request(`transcription/${id}/result`, { query: { format, subtitle_preset: preset } });
  const url = URL.createObjectURL(await response.blob());
  const stem = name.replace(/\.[^.]{1,5}$/, "") || name;
  h("a", { href: url, download: `${stem}.${format === "cues" ? "cues.json" : format}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), TAKEN_MILLISECONDS);
  const warnings = [...(response.headers.get("Warning") ?? "").matchAll(WARNING)].map(([, text]) => text.replace(/\\(.)/g, "$1"));
  const rules = warnings.map((warning) => noted(warning)[0]).join("; ");
  if (rules) toast(t("brokenRules", { rules }));
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast(t("copied"));
  } catch {
    complain(new Error(t("notCopied")));
  }
}
