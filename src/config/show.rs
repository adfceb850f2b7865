//! `belfry config`: what is in force, and where each value came from, without any secret.

use super::{Profile, load::Loaded};

/// Widest value that the origins are aligned behind, in characters.
const WIDTH: usize = 48;

/// Writes every key as TOML, grouped by section, each with its origin in a comment.
#[must_use]
pub fn show(loaded: &Loaded) -> String {
    let profile = match loaded.config.profile {
        Profile::Development => "development",
        Profile::Production => "production",
    };
    let mut sections: Vec<(&str, Vec<(String, &str)>)> = Vec::new();
    for setting in &loaded.settings {
        let (section, name) = setting.key.rsplit_once('.').unwrap_or(("", &setting.key));
        let line = (format!("{name} = {}", setting.value), setting.origin.as_str());
        match sections.iter_mut().find(|(known, _)| *known == section) {
            Some((_, lines)) => lines.push(line),
            None => sections.push((section, vec![line])),
        }
    }
    let mut out = vec![format!("# Belfry {}, profile {profile}", env!("CARGO_PKG_VERSION"))];
    for (section, lines) in sections {
        let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0);
        let width = width.min(WIDTH);
        out.push(format!("\n[{section}]"));
        out.extend(lines.into_iter().map(|(line, origin)| {
            // A path may hold anything, and a comment ends with its line.
            let origin: String = origin.chars().filter(|c| !c.is_control()).collect();
            format!("{line:width$}  # {origin}")
        }));
    }
    out.join("\n")
}
