/** Uploads: files are sent one after the other, each with its progress. */

import { addressOf, ApiError, askForKey, authorization, patiently, problemOf, storedKey } from "./api.js";
import { h, icon } from "./dom.js";
import { percent, t } from "./i18n.js";

/**
 * Send one file; resolves to the id of its job.
 * With the idempotency key `key`, a retry finds the job of the first attempt.
 */
function send(file, fields, { key, onProgress, signal }) {
  // XMLHttpRequest, because fetch does not report upload progress.
  return new Promise((resolve, reject) => {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("file", file, file.name);
    const request = new XMLHttpRequest();
    request.open("POST", addressOf("transcribe"));
    for (const [name, value] of Object.entries({ ...authorization(), "Idempotency-Key": key }))
      request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    request.onload = () => {
      if (request.status === 202) resolve(JSON.parse(request.responseText).job_id);
      else reject(problemOf(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    };
    // A folder, or a file that was changed or removed since it was chosen, also causes a network error.
    request.onerror = () =>
      file.slice(0, 1).arrayBuffer().then(
        () => reject(new ApiError(0, "network", "")),
        () => reject(new ApiError(400, "unreadable_file", "")),
      );
    const stop = () => {
      request.abort();
      reject(signal.reason);
    };
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
    request.send(form);
  });
}

async function sendWithKey(file, fields, options) {
  for (;;) {
    const key = storedKey();
    try {
      return await send(file, fields, options);
    } catch (error) {
      if (error.status !== 401) throw error;
      await askForKey(key);
    }
  }
}

const randomKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** The list of uploads in `list`; `onAccepted(jobId, file)` is called for each file that the server accepted. */
export class Uploads {
  constructor(list, onAccepted) {
    this.list = list;
    this.onAccepted = onAccepted;
    this.last = Promise.resolve();
    this.under = 0;
    // Leaving the page would end the uploads.
    addEventListener("beforeunload", (event) => this.under > 0 && event.preventDefault());
  }

  /** Send a file after the earlier ones. Resolves to the job's id, or to null when the file was not accepted. */
  add(file, fields) {
    const row = this.#row(file);
    this.under += 1;
    const turn = this.last.then(() => this.#send(row, file, fields)).finally(() => (this.under -= 1));
    this.last = turn;
    return turn;
  }

  /** Show a file that is not sent, and the reason. */
  refuse(file, reason) {
    this.#fail(this.#row(file), reason);
  }

  async #send(row, file, fields) {
    const options = {
      key: randomKey(),
      signal: row.controller.signal,
      onProgress: (share) => {
        row.bar.value = share;
        row.words.textContent = share < 1 ? percent(share) : t("uploaded");
      },
    };
    const onTrouble = (error) => (row.words.textContent = !error ? t("uploading") : error.status ? error.message : t("uploadAgain"));
    try {
      onTrouble(null);
      const jobId = await patiently(() => sendWithKey(file, fields, options), options.signal, onTrouble);
      row.element.remove();
      await this.onAccepted(jobId, file);
      return jobId;
    } catch (error) {
      if (options.signal.aborted) row.element.remove();
      else this.#fail(row, error.message);
      return null;
    }
  }

  #fail(row, reason) {
    row.bar.remove();
    row.element.classList.add("failed");
    row.words.textContent = reason;
    row.words.setAttribute("role", "alert");
    row.button.setAttribute("aria-label", t("close"));
  }

  #row(file) {
    const controller = new AbortController();
    const words = h("span", { class: "upload-words" }, t("uploadWaits"));
    const bar = h("progress", { max: 1, value: 0, "aria-label": file.name });
    const button = h("button", { type: "button", class: "icon quiet", "aria-label": t("cancelUpload", { name: file.name }) }, icon("close"));
    const element = h("li", {}, h("div", { class: "upload-line" }, h("span", { class: "name" }, file.name), words, button), bar);
    button.addEventListener("click", () => {
      controller.abort(new DOMException("canceled", "AbortError"));
      element.remove();
    });
    this.list.append(element);
    return { element, words, bar, button, controller };
  }
}
