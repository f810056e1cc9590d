"""Every text that the app shows, in each of its languages, and how texts of strangers are shown."""

from __future__ import annotations

import re

import streamlit as st

from .._text import printable
from ..errors import FetchError, InvalidImageError, PixMatcherError
from .phrases import ERROR_TEXTS, FRENCH_PHRASES

LANGUAGES = {"en": "English", "fr": "Français"}

TEXT_EXAMPLES = (
    "a cat", "a dog", "a horse", "a bird", "a fish", "an insect", "flowers", "trees in a forest", "mountains",
    "a beach", "a boat on the water", "a car", "a train", "an aeroplane", "a bicycle", "a rocket", "a building",
    "a bridge", "a kitchen", "a cup of coffee", "fruit", "a pizza", "an astronaut", "people", "the night sky",
    "coins", "a clock",
)  # fmt: skip
"""Sentences to try where a collection has neither labels nor captions; in English, as the bundled encoder knows."""

ENGLISH = {
    "about": "About",
    "about_intro": "PixMatcher finds images by what is in them: by an example, or by a sentence. It runs on this "
    "machine alone; no image and no query leaves it.",
    "about_how": "How it works",
    "about_how_text": "An *encoder*, a neural network, turns each image into a list of numbers, its embedding, such "
    "that images of like content get like numbers. Some encoders embed texts in the same space. A search embeds the "
    "query and takes the images whose embeddings are nearest to it by inner product: that is the score. Categories "
    "are a vote of the labelled images nearest to the query.",
    "about_licence": "PixMatcher {version} is free software under the MIT licence.",
    "about_models": "Encoders",
    "about_privacy": "Privacy",
    "about_privacy_text": "Images that you upload are kept in memory until you close the page, and nothing is "
    "reported to anybody. A URL is fetched by this machine, never from a private address.",
    "added": "Added",
    "all_labels": "All labels",
    "any_space": "Automatic",
    "author": "Author",
    "bad_image": "This image cannot be used ({detail}): choose another one.",
    "bad_url": "The image could not be fetched: {detail}",
    "bytes": "File size",
    "camera": "Camera",
    "camera_again": "Take another picture",
    "caption": "Caption",
    "categories": "What it may show",
    "clear": "Clear",
    "collection": "Collection",
    "collection_gone": "The collection {path} is gone or cannot be read: bring its folder back, or choose another one.",
    "collection_page": "Collection",
    "count": "Images",
    "crop_frame": "The part of the picture that is searched for",
    "crop_hint": "Drag a corner, or draw a frame, to search for a part of the picture.",
    "crop_keys": "Arrows move the frame, Shift and arrows size it, Enter searches for it, Escape takes the whole "
    "picture.",
    "date": "Date",
    "dates": "By date",
    "details": "Details",
    "dimension": "Size in pixels",
    "download": "Download",
    "drop": "Drop an image here, choose one, or paste one with Ctrl+V",
    "empty": "This collection holds no images yet: index a folder on the page of the collection.",
    "encoder": "Encoder",
    "encoder_passed_over": "The encoder {used} answers, as {wanted} cannot be used here. {detail}",
    "enter": "Enter",
    "error_collection": "{detail}",
    "error_encoder": "{detail}",
    "error_locked": "{detail}",
    "error_other": "{detail}",
    "error_query": "{detail}",
    "error_source": "{detail}",
    "error_storage": "{detail}",
    "exact": "Exact search",
    "exact_help": "Compare every image. Fast searches look at the likeliest part and miss few.",
    "example_from_collection": "From this collection",
    "example_photos": "Example photos",
    "examples": "Examples",
    "failed": "Not indexed",
    "failures_text": "These files could not be indexed. They are tried again when they change.",
    "fetch": "Fetch",
    "file": "File",
    "folder": "A folder of images on the machine that runs the app",
    "folder_missing": "There is no folder {path}: give the full path of a folder of images.",
    "folder_of_system": "The folder {path} belongs to the system: give a folder of images.",
    "folder_unreadable": "The folder {path} may not be read by the app: give another one, or let its user read it.",
    "format": "Format",
    "formats": "Formats",
    "hits": "{count} images, best first",
    "image_page": "By image",
    "image_start": "Which images look like this one?",
    "image_start_text": "Give an image to find those that are like it.",
    "images_of": "{done} of {total} images",
    "index_add": "Add to this collection",
    "index_busy": "Another collection is being made: wait until it is done.",
    "index_done": "Done: {added} added, {changed} changed, {moved} moved, {removed} removed, {failed} could not be "
    "indexed.",
    "index_folder": "Index a folder",
    "index_folder_text": "Its images are added to this collection, or to a new one, which is kept in the folder "
    ".pixmatcher inside it. Your files are only read: nothing is moved, changed or deleted.",
    "index_new": "Make a new collection",
    "index_off": "Indexing is turned off while the app is shared.",
    "index_open": "Look at the new collection",
    "index_refresh": "Look for changes",
    "index_running": "Indexing {source}",
    "internal": "Something went wrong here; the terminal that runs the app tells more. Load the page again to go on.",
    "kilobytes": "kB",
    "label": "Label",
    "labels": "Labels",
    "labels_top": "The most frequent labels",
    "language": "Language",
    "licence": "Licence",
    "map_again": "Draw it again",
    "map_by_cluster": "cluster {number}",
    "map_color": "Colour",
    "map_color_cluster": "by cluster",
    "map_color_label": "by label",
    "map_draw": "Draw the map",
    "map_drawing": "Drawing the map",
    "map_hint": "Images that look alike lie together. Click a point to open its image, or draw a lasso or a "
    "frame around some to see them all.",
    "map_method": "Method",
    "map_nearest": "Nearest to {name}",
    "map_no_label": "no label",
    "map_other_label": "1 other label",
    "map_other_labels": "{count} other labels",
    "map_page": "Map",
    "map_queries": "your query",
    "map_query": "your image",
    "map_selected": "Images chosen: {count}",
    "map_shown": "{count} of {items} images, {when}",
    "map_stale": "{count} images were added, removed or changed since this map was drawn.",
    "map_start": "The collection in two dimensions",
    "map_start_text": "Of {count} images it takes from a moment to some minutes, once; the map is kept in the "
    "collection.",
    "map_text": "Place a text on the map",
    "map_text_space": "Place a text: show the space {space}, which knows texts",
    "megabytes": "MB",
    "min_score": "Minimum score",
    "more_like_this": "More like this",
    "no_hits": "No image of this collection answers that: lower the minimum score, or take out the label filter.",
    "no_picture": "The picture of {name} is out of reach.",
    "no_texts": "This collection has no encoder that knows texts: search it by image.",
    "number": "Number of results",
    "on_disk": "On disk",
    "open": "Open",
    "open_original": "Open the original",
    "out_of_reach": "Out of reach",
    "password": "Password",
    "password_wait": "Too many wrong passwords were tried: wait a minute.",
    "password_wrong": "This is not the password.",
    "picture": "Picture",
    "query_picture": "The image that is searched for",
    "reason": "Reason",
    "reason_and_detail": "{reason}: {detail}",
    "rotate_left": "Turn left",
    "rotate_right": "Turn right",
    "score_help": "1 is an image compared with itself; what is unrelated scores about 0. At 0.00 all images are shown.",
    "search": "Search",
    "share_text": "Images are shared here with those who have the password.",
    "share_title": "PixMatcher",
    "similar": "Similar",
    "size": "Size",
    "space": "Space",
    "steps_of": "{done} of {total} steps",
    "sizes": "Sizes",
    "source": "Where the image comes from",
    "sources": "Sources",
    "taken": "Taken",
    "text_hint": "Try one of these",
    "text_page": "By text",
    "text_placeholder": "a dog on the beach",
    "text_start": "What should the images show?",
    "took": "{ms} ms",
    "unknown_host": "The app does not answer under this name: open it at the address that its terminal shows.",
    "upload": "Upload",
    "url": "URL",
    "url_label": "The address of an image",
    "url_placeholder": "https://example.org/photo.jpg",
    "weak": "Nothing here is quite like that. These are the nearest images there are.",
    "welcome": "Welcome to PixMatcher",
    "welcome_examples": "Or try it with some photos that come with it.",
    "welcome_text": "Name a folder of images to search them by example or by sentence. What is learnt of them is kept "
    "in the folder .pixmatcher inside it. Your files are only read: nothing is moved, changed or deleted.",
    "whole_picture": "Whole picture",
}

FRENCH = {
    "about": "À propos",
    "about_intro": "PixMatcher trouve des images d'après ce qu'elles montrent : par un exemple ou par une phrase. Il "
    "ne tourne que sur cette machine ; aucune image et aucune requête ne la quitte.",
    "about_how": "Comment cela marche",
    "about_how_text": "Un *encodeur*, un réseau de neurones, change chaque image en une liste de nombres, son "
    "plongement, tel que des images de contenu semblable aient des nombres semblables. Certains encodeurs placent les "
    "textes dans le même espace. Une recherche encode la requête et prend les images dont le plongement en est le plus "
    "proche par produit scalaire : c'est le score. Les catégories sont un vote des images étiquetées les plus proches.",
    "about_licence": "PixMatcher {version} est un logiciel libre sous licence MIT.",
    "about_models": "Encodeurs",
    "about_privacy": "Vie privée",
    "about_privacy_text": "Les images envoyées restent en mémoire jusqu'à la fermeture de la page, et rien n'est "
    "signalé à personne. Une URL est lue par cette machine, jamais à une adresse privée.",
    "added": "Ajoutée",
    "all_labels": "Toutes les étiquettes",
    "any_space": "Automatique",
    "author": "Auteur",
    "bad_image": "Cette image ne peut pas servir ({detail}) : choisissez-en une autre.",
    "bad_url": "L'image n'a pas pu être lue : {detail}",
    "bytes": "Taille du fichier",
    "camera": "Caméra",
    "camera_again": "Prendre une autre photo",
    "caption": "Légende",
    "categories": "Ce qu'elle montre peut-être",
    "clear": "Effacer",
    "collection": "Collection",
    "collection_gone": "La collection {path} a disparu ou est illisible : remettez son dossier, ou choisissez-en une "
    "autre.",
    "collection_page": "Collection",
    "count": "Images",
    "crop_frame": "La partie de l'image qui est cherchée",
    "crop_hint": "Tirez un coin, ou tracez un cadre, pour ne chercher qu'une partie de l'image.",
    "crop_keys": "Les flèches déplacent le cadre, Maj et les flèches le dimensionnent, Entrée le cherche, Échap "
    "reprend l'image entière.",
    "date": "Date",
    "dates": "Par date",
    "details": "Détails",
    "dimension": "Taille en pixels",
    "download": "Télécharger",
    "drop": "Déposez une image ici, choisissez-en une, ou collez-la avec Ctrl+V",
    "empty": "Cette collection n'a pas encore d'images : indexez un dossier à la page de la collection.",
    "encoder": "Encodeur",
    "encoder_passed_over": "L'encodeur {used} répond, car {wanted} ne peut pas servir ici. ({detail})",
    "enter": "Entrer",
    "error_collection": "Cette collection ne peut pas être lue ou écrite. ({detail})",
    "error_encoder": "Cet encodeur ne peut pas servir ici. ({detail})",
    "error_locked": "Un autre programme écrit dans cette collection : réessayez quand il aura fini. ({detail})",
    "error_other": "Cela n'a pas été possible. ({detail})",
    "error_query": "Cette recherche n'a pas de réponse ici. ({detail})",
    "error_source": "Ce qui devait être indexé ne peut pas être lu. ({detail})",
    "error_storage": "Le disque est plein ou défaillant : faites de la place et recommencez. ({detail})",
    "exact": "Recherche exacte",
    "exact_help": "Compare chaque image. Une recherche rapide n'en regarde que les plus probables et en manque peu.",
    "example_from_collection": "De cette collection",
    "example_photos": "Photos d'exemple",
    "examples": "Exemples",
    "failed": "Non indexées",
    "failures_text": "Ces fichiers n'ont pas pu être indexés. Ils seront réessayés quand ils changeront.",
    "fetch": "Lire",
    "file": "Fichier",
    "folder": "Un dossier d'images sur la machine qui fait tourner l'application",
    "folder_missing": "Il n'y a pas de dossier {path} : donnez le chemin complet d'un dossier d'images.",
    "folder_of_system": "Le dossier {path} appartient au système : donnez un dossier d'images.",
    "folder_unreadable": "L'application n'a pas le droit de lire le dossier {path} : donnez-en un autre, ou ouvrez-le "
    "à son utilisateur.",
    "format": "Format",
    "formats": "Formats",
    "hits": "{count} images, la meilleure d'abord",
    "image_page": "Par image",
    "image_start": "Quelles images ressemblent à celle-ci ?",
    "image_start_text": "Donnez une image pour trouver celles qui lui ressemblent.",
    "images_of": "{done} images sur {total}",
    "index_add": "Ajouter à cette collection",
    "index_busy": "Une autre collection est en cours de création : attendez qu'elle soit prête.",
    "index_done": "Terminé : {added} ajoutées, {changed} modifiées, {moved} déplacées, {removed} retirées, {failed} "
    "n'ont pas pu être indexées.",
    "index_folder": "Indexer un dossier",
    "index_folder_text": "Ses images sont ajoutées à cette collection, ou à une nouvelle, qui est gardée dans le "
    "dossier .pixmatcher à l'intérieur. Vos fichiers sont seulement lus : rien n'est déplacé, modifié ni supprimé.",
    "index_new": "Créer une nouvelle collection",
    "index_off": "L'indexation est désactivée tant que l'application est partagée.",
    "index_open": "Voir la nouvelle collection",
    "index_refresh": "Chercher les changements",
    "index_running": "Indexation de {source}",
    "internal": "Une erreur s'est produite ; le terminal qui fait tourner l'application en dit plus. Rechargez la page "
    "pour continuer.",
    "kilobytes": "ko",
    "label": "Étiquette",
    "labels": "Étiquettes",
    "labels_top": "Les étiquettes les plus fréquentes",
    "language": "Langue",
    "licence": "Licence",
    "map_again": "La redessiner",
    "map_by_cluster": "groupe {number}",
    "map_color": "Couleur",
    "map_color_cluster": "par groupe",
    "map_color_label": "par étiquette",
    "map_draw": "Dessiner la carte",
    "map_drawing": "Dessin de la carte",
    "map_hint": "Les images qui se ressemblent sont voisines. Cliquez sur un point pour ouvrir son image, ou "
    "entourez-en quelques-uns d'un lasso ou d'un cadre pour les voir toutes.",
    "map_method": "Méthode",
    "map_nearest": "Au plus près de {name}",
    "map_no_label": "sans étiquette",
    "map_other_label": "1 autre étiquette",
    "map_other_labels": "{count} autres étiquettes",
    "map_page": "Carte",
    "map_queries": "votre requête",
    "map_query": "votre image",
    "map_selected": "Images choisies : {count}",
    "map_shown": "{count} images sur {items}, {when}",
    "map_stale": "{count} images ont été ajoutées, retirées ou modifiées depuis le dessin de cette carte.",
    "map_start": "La collection en deux dimensions",
    "map_start_text": "Pour {count} images, cela prend d'un instant à quelques minutes, une seule fois ; la carte est "
    "gardée dans la collection.",
    "map_text": "Placer un texte sur la carte",
    "map_text_space": "Placer un texte : montrer l'espace {space}, qui connaît les textes",
    "megabytes": "Mo",
    "min_score": "Score minimal",
    "more_like_this": "D'autres comme celle-ci",
    "no_hits": "Aucune image de cette collection ne répond : baissez le score minimal, ou ôtez le filtre d'étiquettes.",
    "no_picture": "L'image {name} est hors de portée.",
    "no_texts": "Cette collection n'a pas d'encodeur qui connaisse les textes : cherchez par image.",
    "number": "Nombre de résultats",
    "on_disk": "Sur le disque",
    "open": "Ouvrir",
    "open_original": "Ouvrir l'original",
    "out_of_reach": "Hors de portée",
    "password": "Mot de passe",
    "password_wait": "Trop de mots de passe ont été essayés : attendez une minute.",
    "password_wrong": "Ce n'est pas le mot de passe.",
    "picture": "Image",
    "query_picture": "L'image cherchée",
    "reason": "Raison",
    "reason_and_detail": "{reason} : {detail}",
    "rotate_left": "Tourner à gauche",
    "rotate_right": "Tourner à droite",
    "score_help": "1 est une image comparée à elle-même ; ce qui n'a pas de rapport est proche de 0. À 0.00, toutes "
    "sont montrées.",
    "search": "Chercher",
    "share_text": "Des images sont partagées ici avec ceux qui ont le mot de passe.",
    "share_title": "PixMatcher",
    "similar": "Semblables",
    "size": "Taille",
    "space": "Espace",
    "steps_of": "{done} pas sur {total}",
    "sizes": "Tailles",
    "source": "D'où vient l'image",
    "sources": "Sources",
    "taken": "Prise le",
    "text_hint": "Essayez l'une de celles-ci",
    "text_page": "Par texte",
    "text_placeholder": "a dog on the beach",
    "text_start": "Que doivent montrer les images ?",
    "took": "{ms} ms",
    "unknown_host": "L'application ne répond pas sous ce nom : ouvrez-la à l'adresse que montre son terminal.",
    "upload": "Fichier",
    "url": "URL",
    "url_label": "L'adresse d'une image",
    "url_placeholder": "https://example.org/photo.jpg",
    "weak": "Rien ici ne ressemble vraiment à cela. Voici les images les plus proches.",
    "welcome": "Bienvenue dans PixMatcher",
    "welcome_examples": "Ou essayez avec quelques photos fournies.",
    "welcome_text": "Donnez un dossier d'images pour les chercher par l'exemple ou par une phrase. Ce qui en est "
    "appris est gardé dans le dossier .pixmatcher à l'intérieur. Vos fichiers sont seulement lus : rien n'est déplacé, "
    "modifié ni supprimé.",
    "whole_picture": "Image entière",
}

TEXTS = {"en": ENGLISH, "fr": FRENCH}

_SIGN = re.compile(r"(:(?=[^\s:]+:)|\$)")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def language() -> str:
    """The language that the visitor chose, or else that of the browser if the app knows it, or else English."""
    chosen = st.session_state.get("language")
    return chosen if chosen in LANGUAGES else _of_browser()


def _of_browser() -> str:
    spoken = (st.context.locale or "").partition("-")[0].lower()
    return spoken if spoken in LANGUAGES else "en"


def t(key: str, **values: object) -> str:
    """The text of this name in the visitor's language. Strings among the values are shown as they are."""
    return _filled(
        key, **{name: as_markdown(value) if isinstance(value, str) else value for name, value in values.items()}
    )


def _filled(key: str, **values: object) -> str:
    return TEXTS[language()][key].format(**values)


def plain(text: str) -> str:
    """A text of strangers (a file name, a label) for elements that know no markup, such as `st.text`, on one line."""
    return printable(text)


def as_markdown(text: str) -> str:
    """A text of strangers for elements that show Markdown: each of its characters stands for itself."""
    # Streamlit looks for :emoji: and $formulas$ after the backslashes are gone; a joiner behind the sign stops it.
    return _PUNCTUATION.sub(r"\\\1", _SIGN.sub("\\1\N{WORD JOINER}", printable(text)))


def phrase(text: str) -> str:
    """A fixed phrase of the program, such as the reason of a failure, in the visitor's language."""
    if language() != "fr":
        return text
    known, comma, rest = text.partition(", ")  # as in "ready, int8"
    return FRENCH_PHRASES.get(known, known) + comma + rest


def sentence(error: PixMatcherError) -> str:
    """What to tell a visitor of an error, as Markdown."""
    if isinstance(error, InvalidImageError):
        return _filled("bad_image", detail=_reason_and_detail(error))
    if isinstance(error, FetchError):
        if language() != "en":
            return _filled("bad_url", detail=_reason_and_detail(error))
        # That option is of the command line; who visits the app may not lift the refusal.
        return t("bad_url", detail=str(error).replace(" Allow it with --allow-private-hosts.", ""))
    return t(next(text for kind, text in ERROR_TEXTS if isinstance(error, kind)), detail=str(error))


def _reason_and_detail(error: InvalidImageError | FetchError) -> str:
    """Both as Markdown."""
    detail = error.detail.replace("; --allow-private-hosts allows it", "")
    reason = phrase(error.reason)
    return t("reason_and_detail", reason=reason, detail=detail) if detail else as_markdown(reason)
