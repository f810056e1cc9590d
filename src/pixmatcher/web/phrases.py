"""What the app says in French of the fixed English phrases of other rooms: reasons of failures, states of encoders."""

from __future__ import annotations

from ..errors import (
    CollectionError,
    CollectionLockedError,
    EncoderError,
    PixMatcherError,
    QueryError,
    SourceError,
    StorageError,
)

ERROR_TEXTS: tuple[tuple[type[PixMatcherError], str], ...] = (
    (CollectionLockedError, "error_locked"),
    (StorageError, "error_storage"),
    (CollectionError, "error_collection"),
    (EncoderError, "error_encoder"),
    (SourceError, "error_source"),
    (QueryError, "error_query"),
    (PixMatcherError, "error_other"),
)
"""The text that tells of an error of each kind; the first that fits counts."""

FRENCH_PHRASES = {
    # Images
    "compressed tar file": "fichier tar compressé",
    "cut short": "fichier coupé",
    "damaged": "abîmée",
    "dangling link": "lien vers rien",
    "empty file": "fichier vide",
    "missing": "introuvable",
    "not a regular file": "pas un fichier ordinaire",
    "not a tar file": "pas un fichier tar",
    "not an image": "pas une image",
    "not here": "pas ici",
    "out of memory": "trop peu de mémoire",
    "permission denied": "lecture interdite",
    "remote": "image distante",
    "cannot be read": "illisible",
    "symlink loop": "lien en boucle",
    "too large": "trop grande",
    "too many pixels": "trop de pixels",
    "too many scans": "trop de passes de décodage",
    "truncated": "incomplète",
    "unexpected error": "erreur inattendue",
    "unsupported array": "tableau qui n'est pas une image",
    "unsupported format": "format inconnu ici",
    # URLs
    "cannot be downloaded": "téléchargement impossible",
    "cannot be fetched": "lecture impossible",
    "host does not answer": "le serveur ne répond pas",
    "host not known": "serveur inconnu",
    "not a URL": "pas une URL",
    "not an http URL": "seules les URL http et https sont lues",
    "private address": "adresse privée ou réservée, qui est refusée",
    "too many redirects": "trop de redirections",
    "took too long": "trop lent",
    # Sources
    "NUL byte": "octet nul",
    "NaN or infinite values": "valeurs infinies ou qui n'en sont pas",
    "broken quotes": "guillemets mal fermés",
    "folder cannot be read": "dossier illisible",
    "missing shard": "archive introuvable",
    "missing source": "source introuvable",
    "more of these": "d'autres encore",
    "no images any more": "plus aucune image",
    "no names of labels": "pas de noms d'étiquettes",
    "not JSON": "pas du JSON",
    "not a usable file": "fichier inutilisable",
    "only zeros": "rien que des zéros",
    "same name twice": "deux fois le même nom",
    "same uri twice": "deux fois la même adresse",
    "source cannot be read": "source illisible",
    "text cannot be read": "texte illisible",
    "too long": "trop long",
    "unusable uri": "adresse inutilisable",
    "values too large": "valeurs trop grandes",
    "wrong confidence": "mauvaise confiance",
    "wrong encoding": "mauvais encodage",
    "wrong number of fields": "mauvais nombre de champs",
    "wrong rotation": "mauvaise rotation",
    # Encoders
    "bundled": "fourni",
    "needs the extra torch": "demande l'extra torch",
    "ready": "prêt",
    "to be downloaded": "à télécharger",
}
