/** Correcting words and naming speakers. The server applies the corrections to every format. */

import { json, patiently } from "./api.js";
import { announce, complain, content, h, toast } from "./dom.js";
import { t } from "./i18n.js";
import { shownSpeaker } from "./transcript.js";

/** Retry until the server answers, so that no correction is lost; show once that the page is waiting. */
function patientJson(address, given) {
  let told = false;
  return patiently(() => json(address, given), undefined, (error) => {
    if (told === Boolean(error)) return;
    told = Boolean(error);
    if (error) complain(error.status ? error : new Error(t("away")));
    else content();
  });
}

/** Sends the changes of one transcript, one after the other. */
export class Corrections {
  constructor(jobId, kept) {
    this.address = `transcription/${jobId}/corrections`;
    this.kept = kept;
    this.last = Promise.resolve();
  }

  /** Save a change: `merge` maps the server's current corrections to the new ones. */
  change(merge) {
    const turn = this.last.then(async () => {
      // Another person or tab may have corrected the same transcript.
      this.kept = await patientJson(this.address, { method: "PUT", body: merge(await patientJson(this.address)) });
    });
    this.last = turn.catch(() => {});
    return turn;
  }

  setWord(place, text) {
    return this.#setPart(place, { text });
  }

  /** Correct the `start` or the `end` of a word, in seconds. */
  setTime(place, edge, seconds) {
    return this.#setPart(place, { [edge]: seconds });
  }

  /** Correct a part of a word, and keep what else is corrected of it. */
  #setPart(place, part) {
    const same = (each) => each.segment === place.segment && (each.word ?? null) === place.word;
    const named = { segment: place.segment, ...(place.word === null ? {} : { word: place.word }) };
    return this.change((now) => {
      const correction = { ...now.words.find(same), ...named, ...part };
      return { ...now, words: [...now.words.filter((each) => !same(each)), correction] };
    });
  }

  /** Give a name to every speaker who is now shown as `shown`. */
  nameSpeaker(shown, name) {
    return this.change((now) => {
      const labels = Object.keys(now.speakers).filter((label) => now.speakers[label] === shown);
      // A label without a name is shown as it is.
      const changed = labels.length ? labels : [shown];
      return { ...now, speakers: { ...now.speakers, ...Object.fromEntries(changed.map((label) => [label, name])) } };
    });
  }
}

/** Replace an element by a text field until Enter or Escape is pressed. */
export function rewrite(element, { text, label, save }) {
  const input = h("input", { class: "rewrite", value: text, "aria-label": label, spellcheck: "true", autocomplete: "off" });
  input.size = Math.max(4, text.length + 1);
  let over = false;
  const close = (back) => {
    over = true;
    input.replaceWith(element);
    if (back) element.focus();
  };
  const finish = (back) => {
    if (over) return;
    const written = input.value.trim().replace(/\s+/g, " ");
    close(back);
    if (written !== text) save(written);
  };
  input.addEventListener("input", () => (input.size = Math.max(4, input.value.length + 1)));
  input.addEventListener("blur", () => finish(false));
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.isComposing) return;
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") close(true);
  });
  for (const name of ["click", "dblclick"]) input.addEventListener(name, (event) => event.stopPropagation());
  element.replaceWith(input);
  input.focus();
  input.select();
}

/** Correct a word in place. */
export function editWord(transcript, corrections, entry, onChange) {
  const { element } = entry;
  const before = element.textContent;
  const put = async (text, undoes) => {
    const was = element.textContent;
    const corrected = element.classList.contains("corrected");
    const [parent, next] = [element.parentNode, element.nextSibling];
    element.textContent = text;
    element.classList.add("corrected", "saving");
    try {
      await corrections.setWord(entry, text);
    } catch (error) {
      element.textContent = was;
      element.classList.toggle("corrected", corrected);
      if (was === "") transcript.remove(entry);
      complain(error);
      return;
    } finally {
      element.classList.remove("saving");
    }
    const kept = corrections.kept.words.some((each) => each.segment === entry.segment && (each.word ?? null) === entry.word);
    element.classList.toggle("corrected", kept);
    if (text === "") transcript.remove(entry);
    onChange();
    if (undoes) {
      announce(t("restored"));
      return;
    }
    const undo = () => {
      if (text === "") parent.insertBefore(element, next?.parentNode === parent ? next : null);
      put(was || before, true).then(() => {
        transcript.recount();
        // The button with the focus was replaced.
        if (document.activeElement !== document.body) return;
        transcript.select(entry);
        element.focus();
      });
    };
    toast(t(text ? "corrected" : "removed"), { label: t("undo"), run: undo });
  };
  rewrite(element, { text: before, label: t("correctWord", { word: before }), save: (text) => put(text, false) });
}

/** Rename a speaker in place. */
export function renameSpeaker(button, corrections, onRenamed) {
  const shown = button.dataset.name;
  const save = async (name) => {
    if (!name) return;
    try {
      await corrections.nameSpeaker(shown, name);
    } catch (error) {
      complain(error);
      return;
    }
    onRenamed(new Map([[shown, name]]));
    toast(t("renamed", { name }));
  };
  rewrite(button, { text: shownSpeaker(shown), label: t("nameSpeaker", { name: shownSpeaker(shown) }), save });
}
