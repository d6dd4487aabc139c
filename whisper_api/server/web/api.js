/** Requests to the server: the key, errors, and retries while the server cannot be reached. */

import { $ } from "./dom.js";
import { has, t } from "./i18n.js";

// The scripts are in assets/ below the address of the application, wherever it is mounted.
const BASE = new URL("..", import.meta.url);
const STORED_KEY = "whisper-api-key";
const FIRST_DELAY = 500;
const LONGEST_DELAY = 8000;
// The longest pause, even when the server asks for a longer one.
const LONGEST_REST = 60_000;

/** A request that failed. Status 0: the server was not reached. */
export class ApiError extends Error {
  constructor(status, code, detail, retryAfter = 0) {
    super(has(`error_${code}`) ? t(`error_${code}`) : detail || t("error_unknown"));
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  /** Whether the same request may succeed soon; a quota that is used up lasts until the next day or month. */
  get passes() {
    return this.code !== "quota_exceeded" && [0, 429, 502, 503, 504].includes(this.status);
  }
}

export const addressOf = (path, query = {}) => {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(query)) if (value !== null && value !== "") url.searchParams.set(name, value);
  return url;
};

export const storedKey = () => sessionStorage.getItem(STORED_KEY);
export const authorization = () => (storedKey() ? { Authorization: `Bearer ${storedKey()}` } : {});

/** Forget the key of this session. */
export const forgetKey = () => sessionStorage.removeItem(STORED_KEY);

let asking = null;

/** Ask for a key, once for all requests that need one. Forgets the key `refused`, and resolves when there is another. */
export function askForKey(refused) {
  if (asking) return asking;
  if (storedKey() !== refused) return Promise.resolve();
  forgetKey();
  asking = new Promise((resolve) => {
    const [dialog, form, input] = [$("key-dialog"), $("key-form"), $("key")];
    $("key-problem").textContent = refused ? t("keyRefused") : "";
    input.value = "";
    form.onsubmit = (event) => {
      event.preventDefault();
      const key = input.value.trim();
      // A key has only characters that a header may have.
      if (!/^[\x21-\x7e]+$/.test(key)) {
        $("key-problem").textContent = t("keyRefused");
        return;
      }
      sessionStorage.setItem(STORED_KEY, key);
      input.value = "";
      $("forget").hidden = false;
      dialog.close();
    };
    // The page shows nothing without a key, so the dialog stays open.
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      asking = null;
      if (storedKey()) resolve();
      else askForKey(null).then(resolve);
    };
    dialog.showModal();
    input.focus();
  });
  return asking;
}

/** The error in the body of an answer. */
export function problemOf(status, text, retryAfter = null) {
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // The body is a proxy's page or empty: only the status is known.
  }
  return new ApiError(status, body.code ?? `http_${status}`, body.detail, Number(retryAfter) || 0);
}

/**
 * Make a request; when the key is missing or refused, ask for one and repeat the request.
 * Resolves to the response. Throws an ApiError, or an AbortError when `signal` is aborted.
 */
export async function request(path, { method = "GET", query, headers = {}, body, signal } = {}) {
  for (;;) {
    const key = storedKey();
    let response, text;
    try {
      response = await fetch(addressOf(path, query), {
        method,
        headers: { ...headers, ...authorization() },
        body,
        signal,
        cache: "no-store",
        credentials: "omit",
        referrerPolicy: "no-referrer",
      });
      if (response.ok) return response;
      text = await response.text();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError(0, "network", "");
    }
    const problem = problemOf(response.status, text, response.headers.get("Retry-After"));
    if (response.status !== 401) throw problem;
    await askForKey(key);
  }
}

/** Make a request whose answer is JSON; `body` is sent as JSON. */
export async function json(path, { body, headers = {}, ...rest } = {}) {
  const given = body === undefined ? { headers } : { headers: { ...headers, "Content-Type": "application/json" } };
  const response = await request(path, { ...rest, ...given, body: body === undefined ? undefined : JSON.stringify(body) });
  try {
    return await response.json();
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, "network", "");
  }
}

/** Wait, or until the network comes back. Throws an AbortError when `signal` is aborted. */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const done = (how, value) => {
      clearTimeout(timer);
      removeEventListener("online", wake);
      signal?.removeEventListener("abort", stop);
      how(value);
    };
    const wake = () => done(resolve);
    const stop = () => done(reject, signal.reason);
    const timer = setTimeout(wake, milliseconds);
    addEventListener("online", wake, { once: true });
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Pause before the nth retry: longer each time, and random, so that browsers do not retry at the same time. */
export const delay = (attempt, first = FIRST_DELAY) => Math.min(LONGEST_DELAY, first * 2 ** attempt) * (0.75 + Math.random() / 2);

/**
 * Retry until the action succeeds, or fails permanently.
 * `onTrouble` is called with each temporary error, and with null when the server is back.
 */
export async function patiently(action, signal, onTrouble = () => {}) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      const value = await action();
      onTrouble(null);
      return value;
    } catch (error) {
      if (!(error instanceof ApiError) || !error.passes) throw error;
      onTrouble(error);
      await pause(Math.max(delay(attempt), Math.min(LONGEST_REST, error.retryAfter * 1000)), signal);
    }
  }
}
