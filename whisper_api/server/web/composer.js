/** The form for a new transcription: files, drops, the microphone; language, speakers, track, model. */

import { json } from "./api.js";
import { $, complain, h } from "./dom.js";
import { bytes, compare, languageName, t } from "./i18n.js";
import { obstacle, Recorder } from "./recorder.js";

// Languages of Whisper, the same as in the server.
export const LANGUAGES =
  "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo zh yue".split(
    " ",
  );
const MOST_SPEAKERS = 10;
const MOST_TRACKS = 16;
// A track is not kept for the next visit: it belongs to a file.
const CHOICES = ["language", "speakers", "model"];
// The form fields of the choices of speakers that are not numbers.
const SPEAKER_FIELDS = { auto: {}, channels: { channels: "separate" }, none: { diarize: "false" } };

export class Composer {
  constructor(uploads, { onFirst }) {
    this.uploads = uploads;
    this.onFirst = onFirst;
    this.maxBytes = Infinity;
    this.#offer();
    this.#listen();
  }

  /** Ask the server for its limits and models; the page also works without them. */
  async learn() {
    const [status, models] = await Promise.allSettled([json("status"), json("v1/models")]);
    if (status.status === "fulfilled") {
      this.maxBytes = status.value.resources?.max_file_size ?? Infinity;
      if (!obstacle() && this.maxBytes < Infinity) $("drop-hint").textContent = t("dropHint", { size: bytes(this.maxBytes) });
      this.defaultModel = status.value.processing?.model ?? "";
    }
    if (models.status === "fulfilled") this.#offerModels(models.value.data ?? []);
    return status.status === "fulfilled" ? status.value : null;
  }

  /** Send these files to the server. */
  async take(files) {
    const sent = [];
    for (const file of files) {
      if (!file.size) this.uploads.refuse(file, t("emptyFile"));
      else if (file.size > this.maxBytes) this.uploads.refuse(file, t("error_file_too_large"));
      else sent.push(this.uploads.add(file, this.#fields()));
    }
    const jobs = (await Promise.all(sent)).filter(Boolean);
    // Open the job of a single file, but not those of several, and not during the next recording.
    if (jobs.length === 1 && files.length === 1 && !this.recorder.busy) this.onFirst(jobs[0]);
  }

  #fields() {
    const speakers = $("speakers").value;
    return {
      language: $("language").value,
      ...(SPEAKER_FIELDS[speakers] ?? { num_speakers: speakers }),
      ...($("track").value ? { audio_track: $("track").value } : {}),
      ...($("model").value ? { model: $("model").value } : {}),
      sync: "false",
      keep_result: "true",
      metadata: JSON.stringify({ from: "page" }),
    };
  }

  #offer() {
    const option = (value, text) => h("option", { value }, text);
    const near = [...new Set((navigator.languages ?? []).map((tag) => tag.slice(0, 2).toLowerCase()))].filter((code) => LANGUAGES.includes(code));
    const others = LANGUAGES.filter((code) => !near.includes(code)).map((code) => [code, languageName(code)]);
    others.sort(([, one], [, two]) => compare(one, two));
    $("language").append(
      option("auto", t("languageAuto")),
      option("multi", t("languageMulti")),
      ...near.map((code) => option(code, languageName(code))),
      h("hr"),
      ...others.map(([code, name]) => option(code, name)),
    );
    const numbers = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => option(String(first + index), String(first + index)));
    $("speakers").append(option("auto", t("speakersAuto")), ...numbers(2, MOST_SPEAKERS), option("channels", t("speakersChannels")), option("none", t("speakersNone")));
    $("track").append(option("", t("trackAuto")), ...numbers(1, MOST_TRACKS));
    for (const id of CHOICES) this.#restore(id);
    for (const id of CHOICES) $(id).addEventListener("change", () => sessionStorage.setItem(`whisper-api-${id}`, $(id).value));
  }

  #offerModels(models) {
    const names = models.map((model) => model.id).filter((id) => id !== "whisper-1" && id !== this.defaultModel);
    $("model").replaceChildren(
      h("option", { value: "" }, this.defaultModel || t("modelDefault")),
      ...names.map((name) => h("option", { value: name }, name)),
    );
    $("model-choice").hidden = names.length === 0;
    this.#restore("model");
  }

  #restore(id) {
    const chosen = sessionStorage.getItem(`whisper-api-${id}`);
    if (chosen !== null && [...$(id).options].some((option) => option.value === chosen)) $(id).value = chosen;
  }

  #listen() {
    $("choose").addEventListener("click", () => $("files").click());
    $("files").addEventListener("change", () => {
      const files = [...$("files").files];
      $("files").value = "";
      this.take(files);
    });
    this.recorder = new Recorder({
      onFile: (file) => this.take([file]),
      onProblem: (text) => complain(new Error(text)),
      onState: (recording) => {
        $("drop").hidden = recording;
        $("recorder").hidden = !recording;
        if (!recording) $("record").focus();
      },
    });
    $("drop-words").textContent = t(matchMedia("(pointer: coarse)").matches ? "dropTouch" : "dropHere");
    const hindered = obstacle();
    $("record").disabled = Boolean(hindered);
    if (hindered) $("drop-hint").textContent = hindered;
    $("record").addEventListener("click", () => this.recorder.start());
    this.#acceptDrops();
  }

  #acceptDrops() {
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    const usable = (event) => hasFiles(event) && !document.querySelector("dialog[open]");
    let depth = 0;
    const show = (shown) => ($("dropping").hidden = !shown);
    addEventListener("dragenter", (event) => usable(event) && show(++depth > 0));
    addEventListener("dragleave", (event) => usable(event) && show(--depth > 0));
    // Otherwise the browser would open a file that is dropped outside the drop area.
    addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      depth = 0;
      show(false);
      if (usable(event)) this.take([...event.dataTransfer.files]);
    });
  }
}
