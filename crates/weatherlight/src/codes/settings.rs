//! What can be wrong with a setting.

use super::Family::Setting;
use super::{Code, row};

pub(super) const CODES: &[Code] = &[
    row(
        Setting,
        "unknown",
        "There is no such setting",
        "The name is not known, so it would have no effect. In the file and on the command line that is a fault, in the environment a warning.",
        "A typing error, or a setting of another version.",
        "Use the name that is suggested; docs/settings.md and `weatherlight config show` list all.",
    ),
    row(
        Setting,
        "value",
        "The value cannot be used",
        "It is not of the setting's type, or out of its bounds; the message tells both and where the value stands.",
        "A wrong unit, a typing error, a number out of range.",
        "Write a value as docs/settings.md describes it. Units may be written out: 250ms, 10s, 64MiB.",
    ),
    row(
        Setting,
        "syntax",
        "The file cannot be read as what it is",
        "The parser stopped at the line and column that are named; nothing behind it was read.",
        "A missing quote or bracket in weatherlight.toml, a line without `=` in .env or after --set.",
        "Correct that place.",
    ),
    row(
        Setting,
        "unreadable",
        "A file that is named cannot be read",
        "The settings file, .env or the file of a secret is missing or may not be read by this user.",
        "A wrong path, or rights for another user.",
        "Correct the path, or give this user the right to read the file (and nobody else for a secret).",
    ),
    row(
        Setting,
        "twice",
        "A secret stands both in a variable and in a file",
        "NAME and NAME_FILE are both set, and it would be unclear which one counts.",
        "The change to secret files was left half done.",
        "Remove one of them; keep the file.",
    ),
    row(
        Setting,
        "not_text",
        "A variable's value is no text",
        "It is not UTF-8, so it cannot be read.",
        "A terminal or file in another encoding.",
        "Write the value in UTF-8.",
    ),
    row(
        Setting,
        "no_effect",
        "The setting is accepted and does nothing",
        "Older programs had it; this one reads it and changes nothing by it. A warning.",
        "Settings of an older program.",
        "Remove it.",
    ),
    row(
        Setting,
        "open_to_all",
        "Every user of this machine can read a secret",
        "Whoever reads it can sign messages or change the service. A warning.",
        "The file was made with the usual rights (0644).",
        "`chmod 600 FILE`, owned by the service's user.",
    ),
    row(
        Setting,
        "contradiction",
        "Two settings cannot both hold",
        "Each is within its own bounds, together they cannot work; the message says what must hold.",
        "One of them was changed alone.",
        "Change one so that the rule in the message holds. `weatherlight config show` tells where each came from.",
    ),
];
