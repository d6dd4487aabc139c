/** The reader's language: texts, numbers, times, names of languages. */

import { MESSAGES } from "./messages.js";

const wanted = navigator.languages ?? [navigator.language];

/** "fr" or "en": the first of the browser's languages that the page speaks. */
export const language = wanted.map((tag) => tag.slice(0, 2).toLowerCase()).find((code) => code in MESSAGES) ?? "en";

// With the region, which decides the format of dates.
const locale = wanted.find((tag) => tag.toLowerCase().startsWith(language)) ?? language;
const plurals = new Intl.PluralRules(locale);
const languages = new Intl.DisplayNames([locale], { type: "language" });

/**
 * A text in the reader's language.
 * `values` fill its {placeholders}; of several forms, `values.count` chooses one.
 */
export function t(key, values = {}) {
  const found = MESSAGES[language][key];
  if (found === undefined) throw new Error(`there is no text ${key}`);
  const text = typeof found === "string" ? found : found[plurals.select(values.count)] ?? found.other;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Whether there is such a text. */
export const has = (key) => key in MESSAGES[language];

/** A place in a recording: 0:07, 12:34, 1:02:03. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const tail = `${String(rest).padStart(2, "0")}`;
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${tail}` : `${minutes}:${tail}`;
}

/** A place in a recording to the millisecond: 0:07.250. */
export function preciseClock(seconds) {
  const milliseconds = Math.round(seconds * 1000);
  return `${clock(Math.floor(milliseconds / 1000))}.${String(milliseconds % 1000).padStart(3, "0")}`;
}

/** The seconds of a text such as 7.25, 0:07,250 or 1:02:03; null when it is no time. */
export function secondsOf(text) {
  const match = /^\s*(?:(?:(\d+):)?(\d+):)?(\d+(?:[.,]\d+)?)\s*$/.exec(text);
  if (!match) return null;
  const [hours, minutes, seconds] = match.slice(1).map((part) => Number((part ?? "0").replace(",", ".")));
  return Math.round((hours * 3600 + minutes * 60 + seconds) * 1000) / 1000;
}

/** A duration, rounded for reading: 8 sec, 3 min, 1 hr 20 min. */
export function span(seconds) {
  const unit = (number, name) =>
    new Intl.NumberFormat(locale, { style: "unit", unit: name, unitDisplay: "short" }).format(number);
  if (seconds < 59.5) return unit(Math.max(1, Math.round(seconds)), "second");
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return unit(minutes, "minute");
  return minutes % 60
    ? `${unit(Math.floor(minutes / 60), "hour")} ${unit(minutes % 60, "minute")}`
    : unit(minutes / 60, "hour");
}

/** A time of RFC 3339 as text: without the date when it is today. */
export function moment(text) {
  const date = new Date(text);
  const today = date.toDateString() === new Date().toDateString();
  const day = today ? {} : { day: "numeric", month: "short" };
  return new Intl.DateTimeFormat(locale, { ...day, hour: "numeric", minute: "2-digit" }).format(date);
}

/** A number from 0 to 1 as percent. */
export const percent = (share) => new Intl.NumberFormat(locale, { style: "percent" }).format(share);

/** A file size: 512 MB. */
export function bytes(count) {
  const [unit, scale] = count < 1e9 ? ["megabyte", 2 ** 20] : ["gigabyte", 2 ** 30];
  const format = { style: "unit", unit, unitDisplay: "short", maximumFractionDigits: 1 };
  return new Intl.NumberFormat(locale, format).format(count / scale);
}

/** A whole number. */
export const number = (count) => new Intl.NumberFormat(locale).format(count);

/** The name of a language of Whisper's, by its code. */
export function languageName(code) {
  try {
    const name = languages.of(code);
    return name.charAt(0).toLocaleUpperCase(locale) + name.slice(1);
  } catch {
    return code;
  }
}

/** Order by the rules of the reader's language. */
export const compare = new Intl.Collator(locale).compare;

/** Compares texts without case and accents, for searching. */
export const folded = (text) => text.normalize("NFD").replace(/\p{Mn}/gu, "").toLowerCase();
