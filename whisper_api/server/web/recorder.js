/** The microphone: records a file, and shows level and time. */

import { $, announce } from "./dom.js";
import { clock, t } from "./i18n.js";

const KINDS = [
  ["audio/webm;codecs=opus", "webm"],
  ["audio/mp4", "m4a"],
  ["audio/ogg;codecs=opus", "ogg"],
];
const PIECE_MILLISECONDS = 1000;
// The quietest level that the meter shows.
const FLOOR_DECIBELS = -60;

/** Why the microphone cannot be used, as a text; null when it can. */
export function obstacle() {
  if (!isSecureContext) return t("micInsecure");
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) return t("micMissing");
  return null;
}

/** One recording at a time; `onFile` gets the file, or `onProblem` an error text. */
export class Recorder {
  constructor({ onFile, onProblem, onState }) {
    Object.assign(this, { onFile, onProblem, onState });
    this.stream = null;
    this.asking = false;
    $("stop").addEventListener("click", () => this.#stop(true));
    $("discard").addEventListener("click", () => this.#stop(false));
    addEventListener("beforeunload", (event) => this.stream && event.preventDefault());
  }

  /** Whether it records, or waits for permission. */
  get busy() {
    return this.asking || Boolean(this.stream);
  }

  async start() {
    if (this.busy) return;
    this.asking = true;
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      this.onProblem(t(error.name === "NotAllowedError" ? "micDenied" : "micFailed"));
      return;
    } finally {
      this.asking = false;
    }
    const [type] = KINDS.find(([kind]) => MediaRecorder.isTypeSupported(kind)) ?? [""];
    const recorder = new MediaRecorder(this.stream, type ? { mimeType: type } : {});
    const pieces = [];
    this.wanted = true;
    recorder.addEventListener("dataavailable", (event) => event.data.size && pieces.push(event.data));
    recorder.addEventListener("stop", () => this.#ended(recorder, pieces));
    // The microphone was unplugged: keep the recording up to here.
    this.stream.getAudioTracks()[0].addEventListener("ended", () => this.#stop(true));
    recorder.start(PIECE_MILLISECONDS);
    this.recorder = recorder;
    this.begun = performance.now();
    this.#measure();
    this.#stayAwake();
    this.onState(true);
    announce(t("recording"));
    $("stop").focus();
  }

  #stop(wanted) {
    if (this.recorder?.state !== "recording") return;
    this.wanted = wanted;
    this.recorder.stop();
  }

  #ended(recorder, pieces) {
    for (const track of this.stream.getTracks()) track.stop();
    this.meter?.close();
    this.awake?.release().catch(() => {});
    Object.assign(this, { stream: null, meter: null, awake: null });
    this.onState(false);
    if (!this.wanted || !pieces.length) return;
    const type = recorder.mimeType;
    const suffix = KINDS.find(([kind]) => type.startsWith(kind.split(";")[0]))?.[1] ?? "webm";
    const now = new Date(Date.now() - new Date().getTimezoneOffset() * 60_000).toISOString();
    const name = `${t("recordingFile")} ${now.slice(0, 10)} ${now.slice(11, 16).replace(":", "-")}.${suffix}`;
    this.onFile(new File(pieces, name, { type }));
  }

  /** Show the level and the time. */
  #measure() {
    this.meter = new AudioContext();
    const analyser = new AnalyserNode(this.meter, { fftSize: 1024 });
    this.meter.createMediaStreamSource(this.stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const { stream } = this;
    const look = () => {
      if (this.stream !== stream) return;
      analyser.getFloatTimeDomainData(samples);
      const power = samples.reduce((sum, each) => sum + each * each, 0) / samples.length;
      const level = 1 - (10 * Math.log10(power + 1e-12)) / FLOOR_DECIBELS;
      $("level").style.setProperty("--level", Math.min(1, Math.max(0, level)).toFixed(3));
      const elapsed = clock((performance.now() - this.begun) / 1000);
      if ($("elapsed").textContent !== elapsed) $("elapsed").textContent = elapsed;
      requestAnimationFrame(look);
    };
    look();
  }

  /** Keep the screen on: a phone that sleeps stops recording. */
  async #stayAwake() {
    try {
      this.awake = await navigator.wakeLock?.request("screen");
    } catch {
      // The browser may refuse, with a low battery for example; the recording goes on.
    }
  }
}
