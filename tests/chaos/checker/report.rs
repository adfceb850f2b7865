//! The printed ledger.

use std::fmt::Write as _;

use super::{breach::Kind, run::Outcome};

/// The ledger of a run as text.
pub fn report(outcome: &Outcome) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, outcome);
    text
}

fn write(text: &mut String, outcome: &Outcome) -> std::fmt::Result {
    let verdict = &outcome.verdict;
    let mut sorted = verdict.delivered.clone();
    sorted.sort_unstable();
    let of = |at: usize| sorted.get(at).copied().unwrap_or_default();
    let total: u64 = sorted.iter().sum();

    writeln!(
        text,
        "\naccepted {} publishes, {} events in channels",
        verdict.accepted, verdict.events
    )?;
    writeln!(
        text,
        "delivered {total} to {} clients: least {}, median {}, most {}",
        sorted.len(),
        of(0),
        of(sorted.len() / 2),
        of(sorted.len().saturating_sub(1)),
    )?;
    for (chunk, names) in verdict.delivered.chunks(8).zip(outcome.clients.chunks(8)) {
        for (delivered, name) in chunk.iter().zip(names) {
            let name = name.split(" of ").next().unwrap_or_default();
            write!(text, "  {name:>6}: {delivered:<6}")?;
        }
        writeln!(text)?;
    }
    writeln!(text, "resumed {} times, {} skips", verdict.resumes, verdict.skips)?;
    writeln!(
        text,
        "unknown: {} publishes without a 202, {} of them delivered; {} made twice because Redis \
         forgot the first attempt before it was answered",
        verdict.unanswered,
        verdict.unknown.len(),
        verdict.forgotten.len(),
    )?;

    let announced: u64 = verdict.gaps.values().map(|gap| gap.gaps).sum();
    let covered: u64 = verdict.gaps.values().map(|gap| gap.events).sum();
    writeln!(text, "announced gaps: {announced}, with {covered} events in them")?;
    for (cause, gap) in &verdict.gaps {
        write!(text, "  {:5}, {:6} events: {cause}", gap.gaps, gap.events)?;
        if gap.late > 0 {
            write!(text, " ({} of them told when later ones had come)", gap.late)?;
        }
        writeln!(text)?;
    }
    writeln!(text, "faults:")?;
    for (name, count) in &outcome.faults {
        writeln!(text, "  {count:5} {name}")?;
    }
    writeln!(text, "connections ended:")?;
    for (how, count) in &outcome.ends {
        writeln!(text, "  {count:5} {how}")?;
    }
    writeln!(text, "closed, by the counters of the replicas that are there in the end:")?;
    for (cause, count) in &outcome.closes {
        writeln!(text, "  {count:5} {cause}")?;
    }
    for kind in Kind::ALL {
        writeln!(text, "{:.<28} {}", kind, verdict.breaches.count(kind))?;
    }
    if !verdict.holds() {
        writeln!(text, "\nthe first of each:")?;
        for (kind, what) in &verdict.breaches.told {
            writeln!(text, "  {kind}: {what}")?;
        }
    }
    Ok(())
}
