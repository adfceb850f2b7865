//! The tables of tests in the documents name tests that there are. A name that was changed in the
//! code alone would leave a promise that nothing holds.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The documents with such tables.
const DOCUMENTS: [&str; 2] = ["docs/testing.md", "docs/delivery.md"];

/// A name in a document.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    /// As it stands there: `name`, or `module::name`.
    name: String,
    /// What stands in brackets behind it: `suite`, or a module of `src`; empty for `tests/it`.
    place: String,
}

/// What stands in backticks in this text, each with what follows it in brackets.
fn quoted(text: &str) -> Vec<Named> {
    let parts: Vec<&str> = text.split('`').collect();
    let mut found = Vec::new();
    for (n, name) in parts.iter().enumerate().skip(1).step_by(2) {
        let place = match parts.get(n + 1) {
            Some(&" (") => parts[n + 2],
            Some(rest) if rest.starts_with(" (suite)") => "suite",
            _ => "",
        };
        // It is a place itself.
        if parts[n - 1] != " (" {
            found.push(Named { name: (*name).to_owned(), place: place.to_owned() });
        }
    }
    found
}

/// The names of tests in a document: those in the last column of tables whose last column is called
/// `tests`, and in its text whatever looks like one.
fn named(text: &str) -> Vec<Named> {
    let mut found = Vec::new();
    let mut in_table = false;
    for line in text.lines() {
        let Some(row) = line.strip_prefix('|').and_then(|line| line.trim_end().strip_suffix('|'))
        else {
            in_table = false;
            // Members and settings have fewer words in their names.
            let is_one = |Named { name, .. }: &Named| {
                name.matches('_').count() > 2 && !name.contains(|c: char| c.is_uppercase())
            };
            found.extend(quoted(line).into_iter().filter(is_one));
            continue;
        };
        let cell = row.rsplit('|').next().unwrap();
        in_table |= cell.trim() == "tests";
        if in_table {
            found.extend(quoted(cell).into_iter().filter(|named| !named.name.contains(' ')));
        }
    }
    found
}

/// The tests of this binary, as cargo prints them.
fn own() -> Vec<String> {
    let listed = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// The tests in the sources of the library: functions under an attribute that makes them one, and in
/// the suite those from which a macro makes some.
fn of_library() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut ahead = vec![root.clone()];
    while let Some(path) = ahead.pop() {
        if path.is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let module = module(path.strip_prefix(&root).unwrap());
            let text = fs::read_to_string(&path).unwrap();
            found.extend(tests(&text).into_iter().map(|name| format!("{module}::{name}")));
        }
    }
    found
}

/// The module that a file is.
fn module(file: &Path) -> String {
    let mut path: PathBuf = file.with_extension("");
    if path.ends_with("mod") {
        path.pop();
    }
    path.to_str().unwrap().replace('/', "::")
}

fn tests(text: &str) -> Vec<&str> {
    let (mut found, mut marked, mut promised) = (Vec::new(), false, false);
    for line in text.lines() {
        let line_of_block = line.strip_prefix("    ").unwrap_or(line);
        if line == "promises! {" || line == "}" {
            promised = line != "}";
        }
        let line = line.trim_start();
        if line.starts_with("#[") {
            marked |= line.starts_with("#[test]") || line.contains("::test");
            continue;
        }
        let Some((_, rest)) =
            line.split_once("fn ").filter(|(before, _)| ["", "async "].contains(before))
        else {
            marked &= line.starts_with("//");
            continue;
        };
        if (marked || promised && line_of_block == line)
            && let Some((name, _)) = rest.split_once('(')
        {
            found.push(name);
        }
        marked = false;
    }
    found
}

/// Whether cargo prints a test so, or so with modules before it.
fn ends(test: &str, name: &str) -> bool {
    test.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with("::"))
}

fn exists(named: &Named, own: &[String], library: &[String]) -> bool {
    let (tests, within) = match named.place.as_str() {
        "" => (own, ""),
        "suite" => (library, "bus::suite"),
        module => (library, module),
    };
    tests.iter().any(|test| test.starts_with(within) && ends(test, &named.name))
}

#[test]
fn every_test_in_the_documents_exists() {
    let (own, library) = (own(), of_library());
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
        let all = named(&fs::read_to_string(path).unwrap());
        assert!(all.len() > 80, "{document}: {} names were found", all.len());
        let unknown = all.iter().filter(|named| !exists(named, &own, &library));
        wrong.extend(unknown.map(|Named { name, place }| format!("{document}: {name} {place}")));
    }
    assert!(wrong.is_empty(), "there is no such test:\n{}", wrong.join("\n"));
}

#[test]
fn names_are_found_where_they_stand() {
    let text = "The test is `a_b_c_d`, not `ttl_seconds`.

| fault | tests |
|---|---|
| `x` | `one`, `m::two` (suite), `three` (`registry`), `make chaos` |

| fault | means |
|---|---|
| `x` | `y` |
";
    let found = named(text);
    let found: Vec<_> =
        found.iter().map(|named| (named.name.as_str(), named.place.as_str())).collect();
    let wanted = [("a_b_c_d", ""), ("one", ""), ("m::two", "suite"), ("three", "registry")];
    assert_eq!(found, wanted);
    let own = ["a::memory::one".to_owned()];
    let library = ["bus::suite::m::two".to_owned(), "registry::tracks::tests::four".to_owned()];
    let known = |name: &str, place: &str| {
        exists(&Named { name: name.to_owned(), place: place.to_owned() }, &own, &library)
    };
    assert!(known("one", "") && known("memory::one", "") && known("m::two", "suite"));
    assert!(known("four", "registry"));
    assert!(!known("ne", "") && !known("two", "") && !known("two", "registry"));
    let code = "#[test]
fn one() {}
fn two() {}
promises! {
    /// Said.
    async fn three(bus) {
    }
}
    #[tokio::test(start_paused = true)]
    // Why.
    async fn four() {}
";
    assert_eq!(tests(code), ["one", "three", "four"]);
}
