/** Translations of the server's warnings, which are in English. */

import { language } from "./i18n.js";

// The English text with {} for each variable part, and the French text, in which {1} is the first variable part.
// More specific texts come first.
const FRENCH = [
  [
    "{} of {} segments could not be aligned; the times of their words are interpolated.",
    "{1} segments sur {2} n’ont pas pu être calés ; les temps de leurs mots sont interpolés.",
  ],
  [
    "the language was not detected, because nobody speaks",
    "la langue n’a pas été détectée, car personne ne parle",
  ],
  [
    "the model knows English only: it cannot tell languages apart",
    "le modèle ne connaît que l’anglais : il ne distingue pas les langues",
  ],
  [
    "the model knows English only: transcribed as English, not as {}",
    "le modèle ne connaît que l’anglais : transcrit comme de l’anglais, et non en {1}",
  ],
  [
    "the model does not know {}: transcribed as {}, the nearest that it knows",
    "le modèle ne connaît pas {1} : transcrit en {2}, la langue la plus proche qu’il connaisse",
  ],
  [
    "the audio sounds like {} (probability {}), but was transcribed as {} as asked; use language 'auto' to have it detected",
    "on croit entendre la langue {1} (probabilité {2}), mais la transcription est en {3}, comme demandé ; choisissez « Détecter » pour que la langue soit détectée",
  ],
  [
    "{} s of the speech, first at {}, sound like {}, but were transcribed as {}; language 'multi' transcribes each part in its own language",
    "{1} s de parole, d’abord à {2}, semblent être en {3}, mais la transcription est en {4} ; choisissez « Plusieurs » pour transcrire chaque partie dans sa langue",
  ],
  [
    "the words in {} have their times from Whisper's cross-attention, since there is no alignment model for that language",
    "les temps des mots en {1} viennent de l’attention croisée de Whisper, faute de modèle d’alignement pour cette langue",
  ],
  [
    "{} of {} windows stay doubtful after every attempt; their segments have flags",
    "{1} passages sur {2} restent douteux après tous les essais ; leurs segments sont signalés",
  ],
  [
    "segments left out as invented, since nobody is heard to say them: {}; hallucinations=flag keeps them",
    "segments écartés car inventés, puisqu’on n’entend personne les dire : {1} ; hallucinations=flag les garde",
  ],
  [
    "segments with the flag hallucination, since nobody is heard to say them: {}",
    "segments signalés comme inventés, puisqu’on n’entend personne les dire : {1}",
  ],
  [
    "the file states a length of {} s, of which {} s could be read: it is cut short or damaged",
    "le fichier annonce une durée de {1} s, dont {2} s ont pu être lues : il est tronqué ou endommagé",
  ],
  [
    "the file has no end mark: it seems cut short; {} s could be read",
    "le fichier n’a pas de marque de fin : il semble tronqué ; {1} s ont pu être lues",
  ],
  [
    "the file has {} audio tracks ({}): number {} was used; the option audio_track chooses another",
    "le fichier a {1} pistes audio ({2}) : la numéro {3} a été utilisée ; l’option audio_track en choisit une autre",
  ],
  [
    "the file's header states {} of sound and the file holds {}, all of which was read",
    "l’en-tête du fichier annonce {1} de son, le fichier en contient {2} : tout a été lu",
  ],
  [
    "the file is {} WAV files one behind the other, all of which were read",
    "le fichier est fait de {1} fichiers WAV à la suite, tous lus",
  ],
  [
    "behind the sound is another WAV file with another sample format, which was left out",
    "un autre fichier WAV, d’un autre format, suit le son et a été ignoré",
  ],
  [
    "at least {} speakers were asked for, {} could be told apart",
    "au moins {1} locuteurs étaient demandés, {2} ont pu être distingués",
  ],
  [
    "{} to {} speakers were asked for, {} could be told apart",
    "de {1} à {2} locuteurs étaient demandés, {3} ont pu être distingués",
  ],
  ["{} speakers were asked for, {} could be told apart", "{1} locuteurs étaient demandés, {2} ont pu être distingués"],
  [
    "the speakers were told apart with open models, because {} cannot be used; the log says why",
    "les locuteurs ont été distingués avec des modèles ouverts, car {1} n’est pas utilisable ; le journal du serveur dit pourquoi",
  ],
  [
    "{} was not looked for, because nobody can be heard in the recording that was given",
    "{1} n’a pas été cherché, car personne ne s’entend dans l’enregistrement fourni",
  ],
  [
    "the speakers were told apart by ECAPA-TDNN, because the better CAM++ cannot be had here; `whisper-api models pull campplus` fetches it or says why not",
    "les locuteurs ont été distingués par ECAPA-TDNN, car CAM++, qui est meilleur, n’est pas disponible ici ; `whisper-api models pull campplus` le télécharge ou dit pourquoi c’est impossible",
  ],
  [
    "overlapping speech was heard less well, because segmentation-3.0 cannot be had here; `whisper-api models pull segmentation-3.0` fetches it or says why not",
    "les paroles simultanées sont moins bien entendues, car segmentation-3.0 n’est pas disponible ici ; `whisper-api models pull segmentation-3.0` le télécharge ou dit pourquoi c’est impossible",
  ],
  ["{} s of what sounds like speech gave no text", "{1} s de ce qui ressemble à de la parole n’ont donné aucun texte"],
  [
    "no speech was found, though {} s of sound are loud; vad=none transcribes them all the same",
    "aucune parole n’a été trouvée, alors que {1} s de son sont fortes ; vad=none les transcrit malgré tout",
  ],
  [
    "song was not looked for, because the memory ran out",
    "le chant n’a pas été cherché, faute de mémoire",
  ],
  [
    "song was not looked for, because of an error, which is in the log",
    "le chant n’a pas été cherché, à cause d’une erreur que le journal du serveur décrit",
  ],
  [
    "{} of {} packets of sound are damaged and were left out",
    "{1} paquets de son sur {2} sont endommagés et ont été écartés",
  ],
  [
    "the file is damaged: reading met an error ({})",
    "le fichier est endommagé : sa lecture a rencontré une erreur ({1})",
  ],
  [
    "the file's sound has a hole of {}, which stands as silence",
    "le son du fichier a un trou de {1}, remplacé par du silence",
  ],
  [
    "the file's sound has {} holes, {} in all, which stand as silence",
    "le son du fichier a {1} trous, {2} en tout, remplacés par du silence",
  ],
  [
    "behind the sound is another file, which was left out: only the first one was read",
    "un autre fichier suit le son et a été ignoré : seul le premier a été lu",
  ],
  [
    "of the recording of known speaker {}, the first {} s were used",
    "de l’enregistrement du locuteur connu {1}, les {2} premières secondes ont été utilisées",
  ],
  [
    "time stamps that jump by {} s were not believed: times after that may differ from those of a player",
    "des repères de temps qui sautent de {1} s n’ont pas été crus : les temps qui suivent peuvent différer de ceux d’un lecteur",
  ],
  [
    "{} samples were not finite numbers (NaN or infinite) and stand as 0",
    "{1} échantillons n’étaient pas des nombres finis (NaN ou infini) et valent 0",
  ],
  [
    "samples reach {} where full scale is 1: were they scaled?",
    "des échantillons atteignent {1} là où la pleine échelle est 1 : ont-ils été mis à l’échelle ?",
  ],
  [
    "{} was not trained to translate: the text may be in the language that is spoken",
    "{1} n’a pas appris à traduire : le texte peut être dans la langue parlée",
  ],
  [
    "the known speakers were not looked for, since the speakers were not to be told apart",
    "les locuteurs connus n’ont pas été cherchés, puisque les locuteurs ne devaient pas être distingués",
  ],
  [
    "redact: windows in which something was replaced have no log probabilities",
    "redact : les passages où un texte a été remplacé n’ont pas de probabilités logarithmiques",
  ],
  [
    "identify: nobody was looked for, since no voice is known; enrol voices first (POST /speakers)",
    "identify : personne n’a été cherché, car aucune voix n’est connue ; enregistrez d’abord des voix (POST /speakers)",
  ],
  [
    "{}: not looked for, because another model than {}, which told the speakers of this recording apart, has made these voices; enrol them again",
    "{1} : pas cherché, car un autre modèle que {2}, qui a distingué les locuteurs de cet enregistrement, a fait ces voix ; enregistrez-les de nouveau",
  ],
  [
    "word times come from Whisper's cross-attention, since the alignment model align-{} cannot be had here; `whisper-api models pull align-{}` fetches it or says why not",
    "les temps des mots viennent de l’attention croisée de Whisper, car le modèle de calage align-{1} n’est pas disponible ici ; « whisper-api models pull align-{2} » le télécharge ou dit pourquoi",
  ],
  [
    "the speakers were not told apart, since no diarization model can be had here; `whisper-api models pull campplus` fetches one or says why not",
    "les locuteurs n’ont pas été distingués, car aucun modèle n’est disponible ici ; « whisper-api models pull campplus » en télécharge un ou dit pourquoi",
  ],
  [
    "not every segment was aligned, because the memory ran out",
    "tous les segments n’ont pas été calés, faute de mémoire",
  ],
  [
    "not every segment was aligned, because of an error, which is in the log",
    "tous les segments n’ont pas été calés, à cause d’une erreur notée dans le journal du serveur",
  ],
  [
    "it was not checked whether the audio is in {}, because the memory ran out",
    "il n’a pas été vérifié que l’enregistrement est en {1}, faute de mémoire",
  ],
  [
    "it was not checked whether the audio is in {}, because of an error, which is in the log",
    "il n’a pas été vérifié que l’enregistrement est en {1}, à cause d’une erreur notée dans le journal du serveur",
  ],
  [
    "speech without text was not decoded again, because the memory ran out",
    "la parole restée sans texte n’a pas été décodée de nouveau, faute de mémoire",
  ],
  [
    "speech without text was not decoded again, because of an error, which is in the log",
    "la parole restée sans texte n’a pas été décodée de nouveau, à cause d’une erreur notée dans le journal du serveur",
  ],
  [
    "there are no word times, because the memory ran out",
    "il n’y a pas de temps de mots, faute de mémoire",
  ],
  [
    "there are no word times, because of an error, which is in the log",
    "il n’y a pas de temps de mots, à cause d’une erreur notée dans le journal du serveur",
  ],
  [
    "the known speakers were not looked for, because the memory ran out",
    "les locuteurs connus n’ont pas été cherchés, faute de mémoire",
  ],
  [
    "the known speakers were not looked for, because of an error, which is in the log",
    "les locuteurs connus n’ont pas été cherchés, à cause d’une erreur notée dans le journal du serveur",
  ],
  [
    "word times come from Whisper's cross-attention, because the memory ran out",
    "les temps des mots viennent de l’attention croisée de Whisper, faute de mémoire",
  ],
  [
    "word times come from Whisper's cross-attention, because of an error, which is in the log",
    "les temps des mots viennent de l’attention croisée de Whisper, à cause d’une erreur notée dans le journal du serveur",
  ],
  [
    "the speakers were not told apart, because the memory ran out",
    "les locuteurs n’ont pas été distingués, faute de mémoire",
  ],
  [
    "the speakers were not told apart, because of an error, which is in the log",
    "les locuteurs n’ont pas été distingués, à cause d’une erreur notée dans le journal du serveur",
  ],
  [
    "the two channels have different voices, at once for {} s, of which the mix may lose one; channels=separate recognizes each by itself",
    "les deux canaux ont des voix différentes, en même temps pendant {1} s, dont le mélange peut perdre une ; channels=separate transcrit chaque canal à part",
  ],
  [
    "channel {} is phase-inverted: the mix inverts it back, or the sound would cancel itself",
    "le canal {1} est en opposition de phase : le mélange le rétablit, sinon le son s’annulerait",
  ],
  [
    "channels {} are phase-inverted: the mix inverts them back, or the sound would cancel itself",
    "les canaux {1} sont en opposition de phase : le mélange les rétablit, sinon le son s’annulerait",
  ],
  [
    "channel {} is too quiet beside the others to be heard in the mix",
    "le canal {1} est trop faible à côté des autres pour être entendu dans le mélange",
  ],
  [
    "channels {} are too quiet beside the others to be heard in the mix",
    "les canaux {1} sont trop faibles à côté des autres pour être entendus dans le mélange",
  ],
  ["channel {} is silent (counted from 0)", "le canal {1} est muet (numéroté depuis 0)"],
  ["channel {} has no speech (counted from 0)", "le canal {1} ne contient pas de parole (numéroté depuis 0)"],
  [
    "channel {} is channel {} phase-inverted (counted from 0): it was not recognized again",
    "le canal {1} est le canal {2} en opposition de phase (numérotés depuis 0) : il n’a pas été transcrit une seconde fois",
  ],
  [
    "channel {} has the sound of channel {} (counted from 0): it was not recognized again",
    "le canal {1} a le même son que le canal {2} (numérotés depuis 0) : il n’a pas été transcrit une seconde fois",
  ],
  [
    "channel {} has the voices of channel {} (counted from 0): it was not recognized again",
    "le canal {1} a les mêmes voix que le canal {2} (numérotés depuis 0) : il n’a pas été transcrit une seconde fois",
  ],
  [
    "channel {} has crosstalk of channel {} (counted from 0) at {} dB: what is only crosstalk was left out",
    "on entend sur le canal {1} le canal {2} (numérotés depuis 0) à {3} dB : ce qui n’est que de la diaphonie a été écarté",
  ],
  [
    "the file has more channels later: only the first {} were separated",
    "le fichier a davantage de canaux plus loin : seuls les {1} premiers ont été séparés",
  ],
  [
    "the channels were not separated: they do not have different voices",
    "les canaux n’ont pas été séparés : ils n’ont pas de voix différentes",
  ],
  [
    "the channels were not separated: the recording has one channel",
    "les canaux n’ont pas été séparés : l’enregistrement n’a qu’un canal",
  ],
  [
    "the number of speakers was not used: each of the separate channels is one speaker",
    "le nombre de locuteurs n’a pas été utilisé : chaque canal séparé est un locuteur",
  ],
  [
    "the channels were mixed: {} are more than the {} that auto takes",
    "les canaux ont été mélangés : {1}, c’est plus que les {2} que auto accepte",
  ],
  ["there are no speaker embeddings, because the memory ran out", "il n’y a pas d’empreintes vocales, faute de mémoire"],
  [
    "there are no speaker embeddings, because of an error, which is in the log",
    "il n’y a pas d’empreintes vocales, à cause d’une erreur notée dans le journal du serveur",
  ],
  ["unknown fields were ignored: {}", "des champs inconnus ont été ignorés : {1}"],
  [
    "of fields that were given more than once, the last counts: {}",
    "des champs donnés plusieurs fois, le dernier compte : {1}",
  ],
  [
    "max_line_width: a word or a label is wider than {} characters in {} of {} subtitles, first at {}",
    "un mot ou un nom dépasse {1} caractères dans {2} sous-titres sur {3}, d’abord à {4}",
  ],
  [
    "max_line_count: there are more than {} lines in {} of {} subtitles, first at {}",
    "plus de {1} lignes dans {2} sous-titres sur {3}, d’abord à {4}",
  ],
  [
    "max_duration: more than {} seconds in {} of {} subtitles, first at {}",
    "plus de {1} secondes pour {2} sous-titres sur {3}, d’abord à {4}",
  ],
  [
    "min_duration: the next speech comes before {} seconds in {} of {} subtitles, first at {}",
    "la parole suivante vient avant {1} secondes pour {2} sous-titres sur {3}, d’abord à {4}",
  ],
  [
    "some text has no log probabilities, because of an error, which is in the log",
    "une partie du texte n’a pas de log-probabilités à cause d’une erreur, qui est dans le journal",
  ],
  [
    "{} segments have no word times, because of an error, which is in the log",
    "{1} segments n’ont pas de temps de mots à cause d’une erreur, qui est dans le journal",
  ],
  [
    "the prompt's own words came out of {} windows in which they were not heard; what these windows have without the prompt replaces them",
    "des mots de l’invite sont sortis de {1} fenêtres où ils n’ont pas été entendus ; le texte obtenu sans l’invite les remplace",
  ],
  [
    "min_gap: the next speech comes before {} seconds in {} of {} subtitles, first at {}",
    "l’écart de {1} seconde manque après {2} sous-titres sur {3}, d’abord à {4}",
  ],
  [
    "max_characters_per_second: the speech is faster than {} characters a second in {} of {} subtitles, first at {}",
    "plus de {1} caractères par seconde dans {2} sous-titres sur {3}, d’abord à {4}",
  ],
  [
    "line breaks: a name, a number or an article is separated from its word in {} of {} subtitles, first at {}",
    "un nom, un nombre ou un article est séparé de son mot dans {1} sous-titres sur {2}, d’abord à {3}",
  ],
  [
    "line breaks: the last line has a single word in {} of {} subtitles, first at {}",
    "un mot reste seul sur la dernière ligne de {1} sous-titres sur {2}, d’abord à {3}",
  ],
];

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const patternOf = (template) => new RegExp(`^${template.split("{}").map(escaped).join("(.*?)")}$`, "s");

/** A warning as [text, language]: in the reader's language if there is a translation, else as it is. */
export function noted(remark) {
  if (language === "en") return [remark, "en"];
  for (const [template, french] of FRENCH) {
    const found = patternOf(template).exec(remark);
    if (found) return [french.replace(/\{(\d)\}/g, (_, place) => found[place]), "fr"];
  }
  return [remark, "en"];
}
