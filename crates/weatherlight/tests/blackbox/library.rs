//! The commands of the kernel library as a person or a script meets them: what they print with and without `--json`,
//! their exit codes, and what they leave alone. No service runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::service::{Home, ended};
use crate::wire::sha256_hex;

/// Cheap to compile; the last has another tier.
const BUILT: [&str; 3] = ["BP001", "BP005", "BP038"];

/// What a command did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// What it printed for programs.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|error| panic!("{error}: {} {}", self.out, self.err))
    }
}

/// A home with commands that need no service.
pub struct Library {
    pub home: Home,
}

impl Library {
    /// Nothing in it.
    pub fn empty() -> Self {
        Self { home: Home::new() }
    }

    /// [`BUILT`] in it, compiled once for all tests and copied.
    fn built() -> Self {
        static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
        let template = TEMPLATE.get_or_init(|| {
            let parent = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
            clear_away(&parent);
            let built = Self::empty();
            built.ok(&[&["kernels", "build"][..], &BUILT].concat());
            // What a service would tell of: here nobody waits for it.
            fs::remove_dir_all(built.at("var/urza/forge")).unwrap();
            let kept = parent.join(format!("library-{}", std::process::id()));
            copy(&built.at("var"), &kept);
            kept
        });
        let library = Self::empty();
        copy(template, &library.at("var"));
        library
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.home.directory.path().join(path)
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.run_with(arguments, |_| {})
    }

    pub fn run_with(&self, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Ran {
        let (out, err) = (self.at("stdout"), self.at("stderr"));
        let mut command = self.home.command(arguments);
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        change(&mut command);
        let status = ended(&mut command.spawn().unwrap(), Duration::from_secs(120));
        let read = |path| fs::read_to_string(path).unwrap();
        let ran = Ran { code: status.code().unwrap_or(-1), out: read(out), err: read(err) };
        assert!(!ran.err.contains("panicked"), "{arguments:?}: {}", ran.err);
        ran
    }

    /// It must end well.
    pub fn ok(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {} {}", ran.out, ran.err);
        ran
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        self.ok(&[arguments, &["--json"]].concat()).json()
    }

    /// It must fail with this code, for people and for programs; hands out the message.
    fn refused(&self, arguments: &[&str], code: i32) -> String {
        self.refused_with(arguments, code, |_| {})
    }

    fn refused_with(&self, arguments: &[&str], code: i32, change: impl Fn(&mut Command)) -> String {
        let told = self.run_with(arguments, &change);
        assert_eq!(told.code, code, "{arguments:?}: {} {}", told.out, told.err);
        assert!(told.err.contains("error: "), "{arguments:?}: {}", told.err);
        let told = self.run_with(&[arguments, &["--json"]].concat(), &change);
        assert_eq!(told.code, code, "{arguments:?} --json: {} {}", told.out, told.err);
        let line = told.err.lines().last().unwrap_or_default();
        let error: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {}", told.err));
        assert_eq!(error["error"]["exit"], code, "{error}");
        let word = error["error"]["code"].as_str().unwrap();
        assert!(!word.is_empty(), "{error}");
        error["error"]["message"].as_str().unwrap().to_owned()
    }

    /// Blueprint and digest of what is listed.
    pub fn listed(&self, filters: &[&str]) -> BTreeMap<String, String> {
        let all = self.json(&[&["kernels", "list"], filters].concat());
        let text = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
        let pair = |one: &Value| (text(one, "blueprint_id"), text(one, "checksum"));
        all.as_array().unwrap().iter().map(pair).collect()
    }

    pub fn file(&self, blueprint: &str) -> PathBuf {
        let shown = self.json(&["kernels", "show", blueprint]);
        self.at(shown["path"].as_str().unwrap())
    }

    /// Every file of artifacts with its contents.
    fn artifacts(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut left = vec![self.at("var/urza/artifacts")];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    let contents = fs::read(&path).unwrap();
                    found.insert(path, contents);
                }
            }
        }
        found
    }

    pub fn tickets(&self) -> usize {
        let Ok(entries) = fs::read_dir(self.at("var/urza/forge/jobs")) else { return 0 };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|found| found == "json")).count()
    }
}

/// Removes what earlier processes of these tests have left.
fn clear_away(parent: &Path) {
    for entry in fs::read_dir(parent).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix("library-").and_then(|id| id.parse::<u32>().ok());
        if process.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Other contents of the same length.
pub fn flip(path: &Path) {
    let mut contents = fs::read(path).unwrap();
    let middle = contents.len() / 2;
    contents[middle] ^= 1;
    fs::write(path, contents).unwrap();
}

fn truncate(path: &Path) {
    let contents = fs::read(path).unwrap();
    fs::write(path, &contents[..contents.len() - 1]).unwrap();
}

#[test]
fn what_is_there_is_listed_and_shown() {
    let library = Library::built();
    let all = library.listed(&[]);
    assert_eq!(all.keys().collect::<Vec<_>>(), BUILT.iter().collect::<Vec<_>>());
    let table = library.ok(&["kernels", "list"]).out;
    for (blueprint, digest) in &all {
        assert!(table.contains(blueprint) && table.contains(&digest[..12]), "{table}");
    }
    assert!(table.contains("3 kernels"), "{table}");

    // Filters, each alone and together.
    library.ok(&["kernels", "tag", "BP005", "Nightly"]);
    let only = |filters: &[&str]| library.listed(filters).into_keys().collect::<Vec<_>>();
    assert_eq!(only(&["--blueprint", "bp001"]), ["BP001"]);
    assert_eq!(only(&["--tag", "NIGHTLY"]), ["BP005"]);
    assert_eq!(only(&["--tier", "experimental"]), ["BP038"]);
    assert_eq!(only(&["--site", "vector[32]"]), BUILT);
    assert_eq!(only(&["--state", "active", "--tier", "safe"]), ["BP001", "BP005"]);
    for nothing in [
        &["--site", "vector[33]"][..],
        &["--blueprint", "BP009"],
        &["--tag", "two words"],
        &["--state", "quarantined"],
        &["--tag", "nightly", "--tier", "experimental"],
    ] {
        assert_eq!(only(nothing), [""; 0], "{nothing:?}");
        assert!(library.ok(&[&["kernels", "list"], nothing].concat()).out.contains("0 kernels"));
    }
    for bad in [&["--state", "broken"][..], &["--tier", "1"], &["--colour", "red"]] {
        library.refused(&[&["kernels", "list"], bad].concat(), 2);
    }

    let shown = library.json(&["kernels", "show", "bp005"]);
    assert_eq!(shown["checksum"], all["BP005"].as_str());
    assert_eq!(shown["tags"], json!(["Nightly"]));
    assert_eq!(shown["manifest"]["esper.manifest"]["blueprint"], "BP005", "{shown}");
    assert_eq!(shown["latencies"][0]["samples"], 20, "{shown}");
    assert_eq!((&shown["leases"], &shown["replaced_by"]), (&json!([]), &json!([])));
    let id = shown["id"].as_str().unwrap();
    let upper = all["BP005"].to_ascii_uppercase();
    for name in [&all["BP005"], &all["BP005"][..12], &upper[..9], id] {
        let again = library.json(&["kernels", "show", name]);
        assert_eq!(again["checksum"], all["BP005"].as_str(), "{name}");
    }
    let table = library.ok(&["kernels", "show", "BP005"]).out;
    assert!(table.contains("guard_digest") && table.contains(&all["BP005"]), "{table}");

    let unknown = library.refused(&["kernels", "show", "0123456789abcdef"], 65);
    assert!(unknown.contains("0123456789abcdef"), "{unknown}");
    assert!(library.refused(&["kernels", "show", "99"], 65).contains("id 99"));
    let build = library.refused(&["kernels", "show", "BP009"], 65);
    assert!(build.contains("kernels build BP009"), "{build}");
    for nonsense in ["BP999", "abc", "not-hex", "", "../../etc/passwd", "-1"] {
        let told = library.run(&["kernels", "show", "--", nonsense]);
        assert_eq!(told.code, 65, "{nonsense:?}: {}", told.err);
    }
    library.refused(&["kernels", "show"], 2);
}

/// Entries of an archive: name, contents, kind.
type Entries = Vec<(String, Vec<u8>, tar::EntryType)>;

fn unpacked(path: &Path) -> Entries {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut contents = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut contents).unwrap();
        (name, contents, entry.header().entry_type())
    });
    entries.collect()
}

fn pack(path: &Path, entries: &Entries) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, contents, kind) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_size(contents.len() as u64);
        header.set_entry_type(*kind);
        // Written as it is: the library for archives would refuse some of these names.
        header.as_mut_bytes()[..100].fill(0);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, &contents[..]).unwrap();
    }
    tar.finish().unwrap();
}

/// Records of an archive, replaced by these artifacts of as many engines.
fn with_artifacts(entries: &mut Entries, artifacts: &[Vec<u8>]) {
    let line = String::from_utf8(entries[1].1.clone()).unwrap();
    let one: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    let mut lines = String::new();
    entries.truncate(2);
    for (number, bytes) in artifacts.iter().enumerate() {
        let mut record = one.clone();
        let digest = sha256_hex(bytes);
        record["sha256"] = digest.clone().into();
        record["bytes"] = bytes.len().into();
        record["engine"] = format!("another-{number}").into();
        lines.push_str(&record.to_string());
        lines.push('\n');
        let name = format!("artifacts/{digest}.safetensors");
        entries.push((name, bytes.clone(), tar::EntryType::Regular));
    }
    let mut header: Value = serde_json::from_slice(&entries[0].1).unwrap();
    header["records_sha256"] = sha256_hex(lines.as_bytes()).into();
    header["records"] = artifacts.len().into();
    header["artifacts"] = artifacts.len().into();
    entries[0].1 = header.to_string().into_bytes();
    entries[1].1 = lines.into_bytes();
}

/// Two files whose digests begin with the same four digits, and one whose digest begins with four decimal ones.
fn look_alikes() -> [Vec<u8>; 3] {
    let mut seen: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let (mut decimal, mut pair) = (None, None);
    for number in 0_u32.. {
        let bytes = format!("kernel {number}").into_bytes();
        let start = sha256_hex(&bytes)[..4].to_owned();
        if decimal.is_none() && start.bytes().all(|b| b.is_ascii_digit()) && !start.starts_with('0')
        {
            decimal = Some(bytes);
        } else if start.bytes().any(|b| b.is_ascii_alphabetic())
            && let Some(other) = seen.insert(start, bytes.clone())
        {
            pair.get_or_insert((other, bytes));
        }
        if let (Some(decimal), Some((one, other))) = (&decimal, &pair) {
            return [one.clone(), other.clone(), decimal.clone()];
        }
    }
    unreachable!("digests are like random numbers")
}

#[test]
fn a_digest_is_named_by_its_start_as_long_as_it_is_the_only_one() {
    let library = Library::built();
    let archive = library.at("kernels.tar");
    library.ok(&["kernels", "export", "kernels.tar", "--blueprint", "BP001"]);
    let mut entries = unpacked(&archive);
    let kernels = look_alikes();
    with_artifacts(&mut entries, &kernels);
    pack(&archive, &entries);
    library.ok(&["kernels", "import", "kernels.tar"]);
    let [one, _, decimal] = kernels.each_ref().map(|bytes| sha256_hex(bytes));
    for command in ["show", "verify", "pin", "tag"] {
        let told = library.refused(&["kernels", command, &one[..4]], 65);
        assert!(told.contains("2 kernels") && told.contains(&one[..4]), "{told}");
    }
    assert_eq!(library.json(&["kernels", "show", &one[..16]])["checksum"], one);
    // Four digits are no less the start of a digest for not having a letter.
    assert_eq!(library.json(&["kernels", "show", &decimal[..4]])["checksum"], decimal);
}

#[test]
fn damage_is_found_said_and_repaired_by_an_order() {
    let library = Library::built();
    let all = library.listed(&[]);
    let told = library.json(&["kernels", "verify"]);
    let outcomes: Vec<&str> =
        told.as_array().unwrap().iter().map(|one| one["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["sound"; 3]);
    assert!(library.ok(&["kernels", "verify"]).out.contains("3 sound, 0 not"));
    library.refused(&["kernels", "verify", "0123456789abcdef"], 65);

    flip(&library.file("BP001"));
    truncate(&library.file("BP005"));
    fs::remove_file(library.file("BP038")).unwrap();
    let before = library.artifacts();
    let found = library.run(&["kernels", "verify"]);
    assert_eq!(found.code, 1, "{} {}", found.out, found.err);
    assert!(
        found.out.contains("0 sound, 3 not") && found.out.contains("--repair"),
        "{}",
        found.out
    );
    for (blueprint, digest) in &all {
        assert!(
            found.out.contains(&format!("{blueprint} {}: unsound", &digest[..12])),
            "{}",
            found.out
        );
    }
    let found = library.run(&["kernels", "verify", "bp005", "--json"]);
    assert_eq!(found.code, 1);
    assert_eq!(found.json()[0]["outcome"], "unsound");
    assert!(found.json()[0]["fault"].as_str().unwrap().contains("bytes"), "{}", found.out);
    assert!(library.artifacts() == before, "without --repair nothing is moved");
    assert_eq!(library.listed(&["--state", "active"]), all);
    assert_eq!(library.tickets(), 0);

    let repaired = library.run(&["kernels", "verify", "BP001", "BP005", "--repair", "--json"]);
    assert_eq!(repaired.code, 1, "{} {}", repaired.out, repaired.err);
    for one in repaired.json().as_array().unwrap() {
        assert_eq!((&one["outcome"], &one["rebuild"]), (&"quarantined".into(), &"ordered".into()));
    }
    assert_eq!(library.tickets(), 2);
    let repaired = library.run(&["kernels", "verify", "--repair"]);
    assert_eq!(repaired.code, 1, "{} {}", repaired.out, repaired.err);
    for words in ["BP038", "rebuild ordered", "1 rebuild ordered in", "forge/jobs"] {
        assert!(repaired.out.contains(words), "{words}: {}", repaired.out);
    }
    assert_eq!(library.tickets(), 3);
    assert_eq!(library.listed(&["--state", "quarantined"]), all, "quarantined, and kept");
    assert_eq!(library.ok(&["kernels", "verify"]).code, 0, "what is offered is sound");
    let told = library.refused(&["kernels", "show", "BP001"], 65);
    assert!(told.contains("no active default kernel of BP001"), "{told}");

    // The same bytes come back, and the same records with them.
    library.ok(&[&["kernels", "build"][..], &BUILT].concat());
    assert_eq!(library.listed(&["--state", "active"]), all);
    assert_eq!(library.ok(&["kernels", "verify"]).code, 0);
}

#[test]
fn a_repair_that_cannot_be_ordered_says_so_and_quarantines_all_the_same() {
    let library = Library::built();
    flip(&library.file("BP001"));
    fs::write(library.at("file"), "no directory").unwrap();
    let change = |command: &mut Command| {
        command.env("TEZZERET_QUEUE_DIR", library.at("file/jobs"));
    };
    let told = library.run_with(&["kernels", "verify", "--repair", "--json"], change);
    assert_eq!(told.code, 69, "{} {}", told.out, told.err);
    // In the order of storing, which two builds at once decide between them.
    let rows = told.json();
    let row = rows.as_array().unwrap().iter().find(|row| row["blueprint_id"] == "BP001").unwrap();
    assert_eq!(row["rebuild"], "not_ordered", "{}", told.out);
    assert!(told.err.contains("TEZZERET_QUEUE_DIR"), "{}", told.err);
    assert_eq!(library.listed(&["--state", "quarantined"]).len(), 1);
}

#[test]
fn what_need_not_be_kept_is_named_before_it_is_removed() {
    let library = Library::built();
    let all = library.listed(&[]);
    let orphan = sha256_hex(b"nobody's");
    let name = format!("{}/{orphan}.safetensors", &orphan[..2]);
    let path = library.at("var/urza/artifacts").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "nobody's").unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(7200);
    fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();

    let before = library.artifacts();
    let none = library.json(&["kernels", "gc", "--dry-run"]);
    assert_eq!(none["removed"], json!([]), "older than the catalogue: {none}");
    let told = library.json(&["kernels", "gc", "--dry-run", "--all-orphans"]);
    assert_eq!(told["dry_run"], true);
    assert_eq!(told["removed"][0]["checksum"], orphan.as_str(), "{told}");
    assert_eq!(
        (&told["removed"][0]["reason"], &told["removed"][0]["bytes"]),
        (&"orphan".into(), &8.into())
    );
    let text = library.ok(&["kernels", "gc", "--dry-run", "--all-orphans"]).out;
    assert!(text.contains("1 would be removed, 8 bytes"), "{text}");
    assert!(library.artifacts() == before, "a dry run changes nothing");
    assert_eq!(library.listed(&[]), all);

    let told = library.ok(&["kernels", "gc", "--all-orphans"]).out;
    assert!(told.contains("1 removed, 8 bytes"), "{told}");
    assert!(!path.exists());
    assert_eq!(library.listed(&["--state", "active"]), all);
    assert_eq!(library.ok(&["kernels", "verify"]).code, 0);
}

#[test]
fn an_export_is_taken_elsewhere_and_gives_the_same_bytes() {
    let library = Library::built();
    let all = library.listed(&[]);
    library.ok(&["kernels", "tag", "BP005", "Release"]);
    library.ok(&["kernels", "pin", "BP001"]);
    let told = library.json(&["kernels", "export", "first.tar"]);
    assert_eq!((&told["records"], &told["artifacts"]), (&3.into(), &3.into()));
    assert!(
        library.ok(&["kernels", "export", "second.tar"]).out.contains("3 records, 3 artifacts")
    );
    let first = fs::read(library.at("first.tar")).unwrap();
    assert!(fs::read(library.at("second.tar")).unwrap() == first);
    let told = library.json(&["kernels", "export", "one.tar", "--tag", "release"]);
    assert_eq!(told["records"], 1);
    let told = library.json(&["kernels", "export", "none.tar", "--blueprint", "BP009"]);
    assert_eq!((&told["records"], &told["bytes"]), (&0.into(), &0.into()));

    let there = library.refused(&["kernels", "export", "first.tar"], 65);
    assert!(there.contains("first.tar"), "{there}");
    assert!(fs::read(library.at("first.tar")).unwrap() == first, "what is there stays");
    library.refused(&["kernels", "export", "no/such/directory/kernels.tar"], 65);

    let other = Library::empty();
    let archive = library.at("first.tar");
    let archive = archive.to_str().unwrap();
    let told = other.json(&["kernels", "import", archive]);
    assert_eq!((&told["records"], &told["new"]), (&3.into(), &3.into()));
    assert_eq!(other.listed(&[]), all);
    assert_eq!(other.listed(&["--tag", "release"]).len(), 1);
    assert_eq!(other.json(&["kernels", "show", "BP001"])["pinned"], true);
    assert_eq!(other.ok(&["kernels", "verify"]).code, 0);
    let again = other.ok(&["kernels", "import", archive]).out;
    assert!(again.contains("3 records verified, 0 of them new"), "{again}");
    other.ok(&["kernels", "export", "back.tar"]);
    assert!(fs::read(other.at("back.tar")).unwrap() == first, "out again: the same bytes");
    let none = library.at("none.tar");
    assert_eq!(other.json(&["kernels", "import", none.to_str().unwrap()])["records"], 0);

    flip(&library.file("BP005"));
    let told = library.refused(&["kernels", "export", "third.tar"], 65);
    assert!(told.contains("--repair"), "{told}");
    assert!(!library.at("third.tar").exists(), "nothing half written is left");
    let left = fs::read_dir(library.home.directory.path()).unwrap();
    let names: BTreeSet<String> =
        left.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    let wanted = ["first.tar", "none.tar", "one.tar", "second.tar", "stderr", "stdout", "var"];
    assert_eq!(names.iter().collect::<Vec<_>>(), wanted);
}

#[test]
fn a_broken_or_hostile_archive_is_refused_and_nothing_shows() {
    let library = Library::built();
    library.ok(&["kernels", "export", "good.tar"]);
    let good = library.at("good.tar");
    type Change = fn(&mut Entries);
    let cases: [(&str, Change); 10] = [
        ("a path leads out", |entries| entries[2].0 = "../../../escaped".to_owned()),
        ("a path leads out within", |entries| {
            entries[2].0 = format!("artifacts/../../{}", &entries[2].0["artifacts/".len()..]);
        }),
        ("an absolute path", |entries| entries[2].0 = "/tmp/escaped".to_owned()),
        ("a symbolic link", |entries| {
            (entries[2].1, entries[2].2) = (Vec::new(), tar::EntryType::Symlink);
        }),
        ("a hard link", |entries| {
            (entries[2].1, entries[2].2) = (Vec::new(), tar::EntryType::Link);
        }),
        ("a device", |entries| (entries[2].1, entries[2].2) = (Vec::new(), tar::EntryType::Char)),
        ("a file nobody wants", |entries| {
            entries.push(("letter".to_owned(), b"x".to_vec(), tar::EntryType::Regular));
        }),
        ("another name for the next", |entries| {
            let name = entries[2].0.clone().into_bytes();
            entries.insert(2, ("././@LongLink".to_owned(), name, tar::EntryType::GNULongName));
            entries[3].0 = "x".to_owned();
        }),
        ("a flipped bit", |entries| {
            let middle = entries[3].1.len() / 2;
            entries[3].1[middle] ^= 1;
        }),
        ("a record less than its header says", |entries| entries[1].1.clear()),
    ];
    let other = Library::empty();
    for (name, change) in cases {
        let mut entries = unpacked(&good);
        change(&mut entries);
        pack(&other.at("bad.tar"), &entries);
        let told = other.refused(&["kernels", "import", "bad.tar"], 65);
        assert!(told.contains("nothing was imported"), "{name}: {told}");
    }
    let whole = fs::read(&good).unwrap();
    for length in [0, 100, 512, 700, whole.len() / 2, whole.len() - 5 * 512] {
        fs::write(other.at("bad.tar"), &whole[..length]).unwrap();
        let told = other.refused(&["kernels", "import", "bad.tar"], 65);
        assert!(told.contains("nothing was imported"), "{length} bytes: {told}");
    }
    fs::write(other.at("bad.tar"), "this is no archive. ".repeat(100)).unwrap();
    other.refused(&["kernels", "import", "bad.tar"], 65);
    let missing = other.refused(&["kernels", "import", "missing.tar"], 65);
    assert!(missing.contains("missing.tar"), "{missing}");
    let directory = other.refused(&["kernels", "import", "var"], 65);
    assert!(directory.contains("var"), "{directory}");
    assert_eq!(other.listed(&[]).len(), 0);
    let kept = other.artifacts();
    let kept: Vec<_> = kept.keys().filter_map(|path| path.file_name()?.to_str()).collect();
    assert_eq!(kept, ["library.id"], "nothing of it was kept");
    assert!(!Path::new("/tmp/escaped").exists() && !other.at("../escaped").exists());
    // What was packed by the same means, unchanged, is taken.
    pack(&other.at("bad.tar"), &unpacked(&good));
    assert_eq!(other.json(&["kernels", "import", "bad.tar"])["new"], 3);
}

#[test]
fn tags_pins_and_leases_are_kept_and_given_back() {
    let library = Library::built();
    let told = library.json(&["kernels", "tag", "BP001", "nightly", "Release-1"]);
    assert_eq!(told["tags"], json!(["nightly", "Release-1"]));
    let told = library.ok(&["kernels", "tag", "BP001", "NIGHTLY", "--remove", "release-1"]);
    assert!(told.out.contains("tagged: NIGHTLY"), "{}", told.out);
    for bad in ["two words", "a,b", "", "\u{1b}[2J", &"x".repeat(65)] {
        let told = library.refused(&["kernels", "tag", "BP001", "good", bad], 65);
        assert!(!told.contains('\u{1b}'), "{told}");
    }
    assert_eq!(
        library.json(&["kernels", "tag", "BP001"])["tags"],
        json!(["NIGHTLY"]),
        "all or none"
    );
    library.refused(&["kernels", "tag", "BP009", "x"], 65);

    assert_eq!(library.json(&["kernels", "pin", "BP001"])["outcome"], "pinned");
    assert_eq!(library.json(&["kernels", "show", "BP001"])["pinned"], true);
    assert!(library.ok(&["kernels", "list"]).out.contains("(pinned)"));
    assert!(library.ok(&["kernels", "pin", "BP001", "--remove"]).out.contains("unpinned"));
    assert_eq!(library.json(&["kernels", "show", "BP001"])["pinned"], false);

    let lease = ["kernels", "lease", "BP001", "--holder", "laptop"];
    let with = |more: &[&'static str]| [&lease[..], more].concat();
    assert_eq!(library.json(&with(&["--seconds", "86400"]))["outcome"], "leased");
    let held = &library.json(&["kernels", "show", "BP001"])["leases"][0];
    assert_eq!((&held["holder"], &held["purpose"]), (&"laptop".into(), &"by hand".into()));
    assert_eq!(held["ttl_s"], 86400.0);
    for bad in ["0", "2592001"] {
        let told = library.refused(&with(&["--seconds", bad]), 65);
        assert!(told.contains("30 days") || told.contains("2592000"), "{told}");
    }
    library.refused(&with(&["--seconds", "soon"]), 2);
    library.refused(&["kernels", "lease", "BP001"], 2);
    assert_eq!(library.json(&with(&["--release"]))["outcome"], "released");
    assert_eq!(library.json(&with(&["--release"]))["outcome"], "was not leased");
    assert_eq!(library.json(&["kernels", "show", "BP001"])["leases"], json!([]));
}

#[test]
fn the_schema_goes_down_and_up_and_keeps_the_records() {
    let library = Library::built();
    let all = library.listed(&[]);
    let told = library.json(&["kernels", "migrate", "--to", "1"]);
    let newest = told["before"].as_i64().unwrap();
    assert_eq!(told["after"], 1);
    let told = library.ok(&["kernels", "migrate", "--to", &newest.to_string()]).out;
    assert!(told.contains(&format!("schema version 1 before, {newest} now")), "{told}");
    assert_eq!(library.listed(&[]), all);
    library.ok(&["kernels", "migrate", "--to", "2"]);
    assert_eq!(library.listed(&["--state", "active"]), all, "brought up when it is opened");
    assert_eq!(library.ok(&["kernels", "verify"]).code, 0);
    for version in ["0", "-3", "99"] {
        let told = library.refused(&["kernels", "migrate", &format!("--to={version}")], 65);
        assert!(told.contains(&format!("1 to {newest}")), "{told}");
    }
    library.refused(&["kernels", "migrate", "--to", "two"], 2);
}

/// A catalogue in which a version of the schema stands that this program does not know.
const NEWER: &[u8] = include_bytes!("newer-catalog.db");

#[test]
fn a_catalogue_of_a_newer_version_is_refused_untouched() {
    let library = Library::empty();
    fs::create_dir_all(library.at("var/urza")).unwrap();
    let path = library.at("var/urza/catalog.db");
    fs::write(&path, NEWER).unwrap();
    let export = ["kernels", "export", "kernels.tar"];
    for command in [
        &["kernels", "list"][..],
        &["kernels", "show", "BP001"],
        &["kernels", "verify", "--repair"],
        &["kernels", "gc"],
        &export,
        &["kernels", "tag", "BP001", "x"],
        &["kernels", "build", "BP001"],
        &["kernels", "migrate", "--to", "1"],
    ] {
        let told = library.refused(command, 69);
        assert!(told.contains("schema version 1000"), "{command:?}: {told}");
        assert!(fs::read(&path).unwrap() == NEWER, "{command:?} changed it");
    }
    assert!(!library.at("kernels.tar").exists());
}

#[test]
fn a_library_that_cannot_be_used_is_told_from_settings_that_cannot() {
    let library = Library::empty();
    fs::write(library.at("file"), "no directory").unwrap();
    let archive = ["kernels", "import", "file"];
    let commands = [
        &["kernels", "list"][..],
        &["kernels", "show", "BP001"],
        &["kernels", "verify"],
        &["kernels", "gc", "--dry-run"],
        &["kernels", "export", "kernels.tar"],
        &archive,
        &["kernels", "tag", "BP001", "x"],
        &["kernels", "pin", "BP001"],
        &["kernels", "lease", "BP001", "--holder", "x"],
        &["kernels", "migrate", "--to", "1"],
        &["kernels", "build", "BP001"],
    ];
    for command in commands {
        let told = library.refused_with(command, 69, |command| {
            command.env("URZA_DATABASE_URL", "sqlite:///./file/catalog.db");
        });
        assert!(told.contains("file"), "{command:?}: {told}");
        let told = library.refused_with(command, 78, |command| {
            command.env("URZA_DATABASE_URL", "mysql://user:hunter2@host/db");
        });
        assert!(told.contains("URZA_DATABASE_URL"), "{command:?}: {told}");
        assert!(!told.contains("hunter2"), "{command:?}: {told}");
    }
}

#[test]
fn building_says_what_was_there_and_what_cannot_be() {
    let library = Library::built();
    let told = library.json(&["kernels", "build", "bp001"]);
    assert_eq!((&told[0]["outcome"], &told[0]["blueprint_id"]), (&"found".into(), &"BP001".into()));
    assert!(library.ok(&["kernels", "build", "BP001"]).out.contains("BP001 was there"));
    let variant =
        ["kernels", "build", "BP004", "--parameters", "dropout=0.3", "--site", "vector[8]"];
    let told = library.json(&variant);
    assert_eq!((&told[0]["outcome"], &told[0]["site"]), (&"compiled".into(), &"vector[8]".into()));
    assert_eq!(told[0]["parameters"]["dropout"], 0.3);
    assert_eq!(library.listed(&["--site", "vector[8]"]).len(), 1);
    // It is no default, and named by its digest.
    let told = library.refused(&["kernels", "show", "BP004"], 65);
    assert!(told.contains("kernels list --blueprint BP004"), "{told}");
    // The news of it is left for a service; beside it nothing is queued below.
    assert_eq!(library.tickets(), 1);

    for (arguments, words) in [
        (&["BP999"][..], "BP999"),
        (&["BP043"], "quarantine"),
        (&["BP004", "--parameters", "dropout=0.9"], "dropout"),
        (&["BP004", "--parameters", "colour=1"], "colour"),
        (&["BP004", "--parameters", "dropout=much"], "NAME=VALUE"),
        (&["BP004", "--parameters", "dropout=NaN"], "dropout"),
        (&["BP002", "--site", "vector[1048576]"], "BP002"),
    ] {
        for detached in [&[][..], &["--detach"]] {
            let arguments = [&["kernels", "build"], arguments, detached].concat();
            let told = library.refused(&arguments, 78);
            assert!(told.contains(words), "{arguments:?}: {told}");
        }
    }
    assert_eq!(library.tickets(), 1, "what was refused is not queued");
    for bad in [&["--site", "cube[3]"][..], &["--strategy", "lazy"], &["--jobs", "0"]] {
        library.refused(&[&["kernels", "build", "BP001"], bad].concat(), 2);
    }

    let told = library.json(&["kernels", "build", "BP002", "BP003", "--detach"]);
    assert_eq!((&told[0]["outcome"], &told[1]["outcome"]), (&"queued".into(), &"queued".into()));
    assert_eq!(library.tickets(), 3);
    let told = library.refused_with(&["kernels", "build", "BP002", "--detach"], 69, |command| {
        command.env("TEZZERET_QUEUE_DIR", library.at("stdout/jobs"));
    });
    assert!(told.contains("TEZZERET_QUEUE_DIR"), "{told}");
}

#[test]
fn a_trial_says_what_was_caught() {
    let library = Library::empty();
    let sound = library.json(&["kernels", "quarantine", "bp001"]);
    assert_eq!((&sound["verdict"], &sound["blueprint_id"]), (&"sound".into(), &"BP001".into()));
    assert!(
        library
            .ok(&["kernels", "quarantine", "BP001"])
            .out
            .contains("BP001 (identity_passthrough): sound")
    );
    let caught =
        library.run(&["kernels", "quarantine", "BP043", "--parameters", "scale=20", "--json"]);
    assert_eq!(caught.code, 1, "{} {}", caught.out, caught.err);
    assert_eq!(caught.json()["verdict"], "gradient_exploded");
    assert_eq!(caught.json()["parameters"]["scale"], 20.0);
    let caught = library.run(&["kernels", "quarantine", "BP043"]);
    assert_eq!(caught.code, 1);
    assert!(caught.out.contains("gradient_exploded"), "{}", caught.out);
    assert!(library.refused(&["kernels", "quarantine", "BP999"], 2).contains("BP999"));
    let beyond = ["kernels", "quarantine", "BP043", "--parameters", "scale=21"];
    assert!(library.refused(&beyond, 65).contains("scale"));
    library.refused(&["kernels", "quarantine", "BP043", "--parameters", "scale"], 2);
    library.refused(&["kernels", "quarantine", "BP043", "--site", "cube[3]"], 2);
    library.refused(&["kernels", "quarantine", "BP002", "--site", "vector[1048576]"], 65);
    assert!(!library.at("var").exists(), "nothing is stored");
}

const EXAMPLE: &str = include_str!("../../../../examples/blueprints/bottleneck-adapter.toml");

#[test]
fn blueprints_are_listed_shown_and_checked() {
    let library = Library::empty();
    let all = library.json(&["blueprints", "list"]);
    let all = all.as_array().unwrap();
    let count = |field: &str| all.iter().filter(|one| one[field] == true).count();
    assert_eq!((all.len(), count("served"), count("quarantine_only")), (50, 42, 8));
    let table = library.ok(&["blueprints", "list"]).out;
    assert!(table.contains("BP050") && table.contains("quarantine only"), "{table}");

    let shown = library.json(&["blueprints", "show", "bp036", "--site", "sequence[4x8]"]);
    assert_eq!(
        (&shown["blueprint_id"], &shown["site"]),
        (&"BP036".into(), &"sequence[4x8]".into())
    );
    assert!(shown["kernel"]["operations"].as_u64().unwrap() > 0, "{shown}");
    assert!(library.ok(&["blueprints", "show", "BP036"]).out.contains("mixture_of_experts_4"));
    assert!(library.json(&["blueprints", "show", "BP043"])["refused"].is_string());
    assert!(library.refused(&["blueprints", "show", "BP999"], 78).contains("BP999"));
    library.refused(&["blueprints", "show", "BP001", "--site", "cube[3]"], 2);

    fs::create_dir(library.at("mine")).unwrap();
    fs::write(library.at("mine/good.toml"), EXAMPLE).unwrap();
    let told = library.json(&["blueprints", "check", "mine/good.toml"]);
    assert_eq!(
        (&told[0]["sound"], &told[0]["blueprint_id"]),
        (&true.into(), &"bottleneck-adapter".into())
    );
    assert!(
        library
            .ok(&["blueprints", "check", "mine/good.toml"])
            .out
            .contains("bottleneck-adapter: sound")
    );
    let bad = EXAMPLE.replace("risk =", "risk = 7 #").replace("stage =", "staqe =");
    fs::write(library.at("bad.toml"), bad).unwrap();
    let told = library.run(&[
        "blueprints",
        "check",
        "mine/good.toml",
        "bad.toml",
        "missing.toml",
        "mine",
        "--json",
    ]);
    assert_eq!(told.code, 65, "{} {}", told.out, told.err);
    let told = told.json();
    let sound: Vec<bool> =
        told.as_array().unwrap().iter().map(|one| one["sound"] == true).collect();
    assert_eq!(sound, [true, false, false, false]);
    assert!(told[1]["faults"].as_array().unwrap().len() >= 2, "every fault at once: {told}");
    let told = library.refused(&["blueprints", "check", "bad.toml"], 65);
    for words in ["bad.toml: line", "risk", "staqe"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    library.refused(&["blueprints", "check"], 2);
    let twice = library.refused(&["blueprints", "check", "mine/good.toml", "mine/good.toml"], 65);
    assert!(twice.contains("already"), "{twice}");
}

/// A blueprint of one's own is built, found, shown, exported, repaired and tried by its id like ours.
#[test]
fn a_blueprint_of_ones_own_goes_the_same_ways() {
    let library = Library::empty();
    fs::create_dir(library.at("mine")).unwrap();
    fs::write(library.at("mine/adapter.toml"), EXAMPLE).unwrap();
    let mine = |command: &mut Command| {
        command.env("KARN_BLUEPRINT_DIR", "mine");
    };
    let run = |arguments: &[&str], code| {
        let ran = library.run_with(arguments, mine);
        assert_eq!(ran.code, code, "{arguments:?}: {} {}", ran.out, ran.err);
        ran
    };
    const ID: &str = "bottleneck-adapter";
    run(&["kernels", "build", ID], 0);
    fs::remove_dir_all(library.at("var/urza/forge")).unwrap();
    assert_eq!(
        run(&["kernels", "list", "--blueprint", ID, "--json"], 0).json().as_array().unwrap().len(),
        1
    );
    let shown = run(&["kernels", "show", ID, "--json"], 0).json();
    assert_eq!(shown["blueprint_id"], ID);
    run(&["kernels", "export", "mine.tar", "--blueprint", ID], 0);
    run(&["kernels", "tag", ID, "mine"], 0);
    run(&["kernels", "quarantine", ID], 0);
    assert!(run(&["blueprints", "list"], 0).out.contains(ID));
    flip(&library.at(shown["path"].as_str().unwrap()));
    // A service without the manifest could not build it, and is not told to.
    let told = library.run(&["kernels", "verify", "--json"]);
    assert_eq!((told.code, library.tickets()), (1, 0));
    let told = run(&["kernels", "verify", ID, "--repair", "--json"], 1).json();
    assert_eq!((&told[0]["rebuild"], library.tickets()), (&"ordered".into(), 1));

    fs::write(library.at("mine/bad.toml"), "id = 7\n").unwrap();
    for command in
        [&["blueprints", "list"][..], &["kernels", "build"], &["kernels", "quarantine", "BP001"]]
    {
        let told = library.refused_with(command, 78, mine);
        assert!(told.contains("bad.toml"), "{command:?}: {told}");
    }
}
