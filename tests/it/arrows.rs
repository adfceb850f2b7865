//! The arrows between modules run one way, and each library is behind its seam. A rule that nothing
//! holds is a wish.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Every module with the modules it may name, in the order of the layers.
const LAYERS: &[(&str, &[&str])] = &[
    ("event", &[]),
    ("config", &["event"]),
    ("lifecycle", &[]),
    ("rate", &[]),
    ("gate", &["config", "rate"]),
    ("tls", &["config", "net"]),
    ("seats", &["bus", "config", "event", "store"]),
    ("throttle", &[]),
    ("net", &[]),
    ("frame", &["event"]),
    ("history", &["event", "frame"]),
    ("telemetry", &["config", "event"]),
    ("outbox", &["event", "frame", "telemetry"]),
    ("timer", &["lifecycle", "outbox"]),
    ("registry", &["event", "frame", "history", "lifecycle", "outbox", "telemetry", "throttle"]),
    ("bus", &["config", "event", "frame", "history", "registry", "store", "telemetry", "throttle"]),
    ("store", &["bus", "config", "event"]),
    ("auth", &["bus", "config", "event", "rate", "store", "telemetry"]),
    (
        "connection",
        &[
            "bus",
            "event",
            "frame",
            "history",
            "net",
            "outbox",
            "rate",
            "registry",
            "telemetry",
            "timer",
        ],
    ),
    (
        "http",
        &[
            "auth",
            "bus",
            "config",
            "connection",
            "event",
            "frame",
            "gate",
            "lifecycle",
            "net",
            "outbox",
            "rate",
            "registry",
            "seats",
            "store",
            "telemetry",
            "throttle",
            "timer",
            "tls",
        ],
    ),
    ("rotation", &["auth", "config"]),
    (
        "app",
        &[
            "auth",
            "bus",
            "config",
            "event",
            "gate",
            "history",
            "http",
            "lifecycle",
            "outbox",
            "registry",
            "rotation",
            "seats",
            "store",
            "telemetry",
            "tls",
        ],
    ),
    ("cli", &["auth", "config", "event"]),
];

/// Modules that name each other: this one pair, until what both need has a place below them.
const MUTUAL: &[(&str, &str)] = &[("bus", "store")];

/// A library, and the only places that may name it.
const SEAMS: &[(&str, &[&str])] = &[
    ("fred::", &["bus/redis/", "store/redis"]),
    ("actix_ws::", &["connection/websocket.rs"]),
    ("jsonwebtoken::", &["auth/", "cli/token.rs", "config/"]),
    ("prometheus::", &["telemetry/"]),
    ("governor::", &["rate.rs"]),
    ("rustls::", &["cli/", "config/tls.rs", "tls.rs"]),
];

fn sources() -> BTreeMap<String, String> {
    fn walk(dir: &Path, root: &Path, found: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    walk(&root, &root, &mut found);
    found
}

/// The code of a file: without its unit tests, which may name anything, and without comments.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end]
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn module(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

/// The modules named after `crate::`, also inside a group of imports.
fn named(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if start && c.is_alphabetic() => {
                        let name: String = group[i..]
                            .chars()
                            .take_while(|c| c.is_alphanumeric() || *c == '_')
                            .collect();
                        names.push(name);
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
}

#[test]
fn arrows_run_one_way() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let own = module(&file);
        if ["main", "lib", "testing"].contains(&own) || file == "bus/suite.rs" {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == own) else {
            wrong.push(format!("{file}: the module {own} stands in no layer"));
            continue;
        };
        for name in named(&code(&text)) {
            if name != own && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{file} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a module may reach by the table, itself only by way of a cycle.
fn reach<'a>(from: &str, skip: &[(&str, &str)]) -> std::collections::BTreeSet<&'a str> {
    let mut found = std::collections::BTreeSet::new();
    let mut ahead = vec![from];
    while let Some(module) = ahead.pop() {
        let layer = LAYERS.iter().find(|(name, _)| *name == module);
        for next in layer.map_or(&[][..], |(_, allowed)| allowed) {
            if !skip.contains(&(module, next)) && found.insert(*next) {
                ahead.push(next);
            }
        }
    }
    found
}

#[test]
fn the_table_has_no_cycle_but_the_known_one() {
    for (module, _) in LAYERS {
        assert!(!reach(module, MUTUAL).contains(module), "{module} leads back to itself");
    }
    for (one, other) in MUTUAL {
        assert!(reach(one, &[]).contains(one), "{one} and {other} no longer name each other");
    }
}

#[test]
fn libraries_stay_behind_their_seams() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (library, places) in SEAMS {
            let named = code(&text).contains(library);
            if named && !places.iter().any(|place| file.starts_with(place)) {
                wrong.push(format!("{file} names {library}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_what_it_should() {
    let code = "use crate::{\n    bus::{Feed, redis},\n    event::X,\n};\nuse crate::net;\ncrate::http::y()";
    assert_eq!(named(code), ["bus", "event", "net", "http"]);
}
