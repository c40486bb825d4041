//! `tidegate check`: judges the files that an agent would read, by the same code, without running anything.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use tidegate_gateway_api::{ObjectRef, ObjectStatus, Settings, Translator};

use crate::{
    admin::report::{ConditionReport, to_reports},
    cli::{Output, Table},
    options::CONTROLLER_NAME,
    source::{Problem, Severity, Store, tree, yaml::MAX_TEXT},
};

/// Options of `tidegate check`.
#[derive(Args, Clone, Debug)]
pub struct CheckOptions {
    /// Files and folders to judge together; `-` is standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Fail on unknown kinds and fields as well
    #[arg(long)]
    strict: bool,
    /// A further controller name whose GatewayClasses are judged; may be given several times
    #[arg(long = "controller-name", env = "TIDEGATE_CONTROLLER_NAME", value_name = "NAME", value_delimiter = ',')]
    controller_names: Vec<String>,
    /// Tables for people or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// The judgement.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Judgement {
    is_valid: bool,
    objects: usize,
    conditions: Vec<Row>,
    problems: Vec<Problem>,
}

/// One condition of one object.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    kind: String,
    name: String,
    /// Listener or parent that the condition is about; empty when it is the object itself.
    part: String,
    file: PathBuf,
    line: u64,
    #[serde(flatten)]
    condition: ConditionReport,
}

/// Judges and prints.
///
/// # Errors
/// When a path is missing or standard input cannot be read.
pub fn run_check(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let judgement = judge(options)?;
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&judgement)?),
        Output::Table => print_judgement(&judgement),
    }
    Ok(if judgement.is_valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn judge(options: &CheckOptions) -> anyhow::Result<Judgement> {
    let mut store = Store::default();
    let mut events = Vec::new();
    let mut unreadable = Vec::new();
    for path in &options.paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .take(MAX_TEXT as u64)
                .read_to_string(&mut text)
                .context("standard input cannot be read")?;
            store.put_text(&Arc::from(Path::new("<stdin>")), &text, &mut events);
        } else if path.is_dir() {
            let tree = tree::walk(path, &mut |_| {}).with_context(|| format!("{} cannot be read", path.display()))?;
            unreadable.extend(tree.unreadable);
            for file in tree.files.keys() {
                store.read(file, &mut events);
            }
        } else if path.exists() {
            store.read(path, &mut events);
        } else {
            bail!("there is no {}", path.display());
        }
    }
    let mut translator = Translator::new(settings(options));
    translator.apply(events);

    let mut conditions = Vec::new();
    let places = store.places();
    for (reference, status) in translator.statuses() {
        push_rows(&mut conditions, places.get(reference).copied(), reference, status);
    }
    let status = store.status();
    let mut problems = status.problems;
    problems.extend(unreadable.into_iter().map(|(file, error)| Problem {
        file,
        line: 0,
        column: 0,
        severity: Severity::Error,
        object: None,
        message: format!("cannot be read: {error}"),
    }));
    let is_wrong = |problem: &Problem| options.strict || problem.severity == Severity::Error;
    let is_valid = conditions.iter().all(|row| row.condition.is_good) && !problems.iter().any(is_wrong);
    Ok(Judgement { is_valid, objects: status.objects, conditions, problems })
}

fn settings(options: &CheckOptions) -> Settings {
    let mut controller_names = vec![CONTROLLER_NAME.to_owned()];
    controller_names.extend(options.controller_names.iter().cloned());
    Settings { controller_names, reports_missing_parents: true, ..Settings::default() }
}

fn push_rows(rows: &mut Vec<Row>, place: Option<(&Path, u64)>, reference: &ObjectRef, status: &ObjectStatus) {
    let (file, line) = place.map_or((PathBuf::new(), 0), |(file, line)| (file.to_owned(), line));
    let mut push = |part: String, conditions: &[tidegate_gateway_api::Condition]| {
        rows.extend(to_reports(conditions).into_iter().map(|condition| Row {
            kind: reference.kind.to_string(),
            name: reference.name.to_string(),
            part: part.clone(),
            file: file.clone(),
            line,
            condition,
        }));
    };
    push(String::new(), &status.conditions);
    for listener in &status.listeners {
        push(format!("listener {}", listener.name), &listener.conditions);
    }
    for parent in &status.parents {
        let namespace = parent.parent.namespace.as_deref().unwrap_or(&reference.name.namespace);
        let kind = parent.parent.kind.as_deref().filter(|kind| *kind != "Gateway");
        let kind = kind.map(|kind| format!("{kind}/")).unwrap_or_default();
        push(format!("parent {kind}{namespace}/{}", parent.parent.name), &parent.conditions);
    }
}

fn print_judgement(judgement: &Judgement) {
    let mut table = Table::new(["OBJECT", "PART", "CONDITION", "STATUS", "REASON", "MESSAGE"]);
    for row in &judgement.conditions {
        let mark = if row.condition.is_good { "" } else { " !" };
        let place = if row.condition.is_good || row.line == 0 {
            String::new()
        } else {
            format!(" ({}:{})", row.file.display(), row.line)
        };
        table.push([
            format!("{}/{}", row.kind, row.name),
            row.part.clone(),
            row.condition.type_.clone(),
            format!("{}{mark}", if row.condition.status { "True" } else { "False" }),
            row.condition.reason.clone(),
            format!("{}{place}", row.condition.message),
        ]);
    }
    if !table.is_empty() {
        print!("{table}");
    }
    for problem in &judgement.problems {
        println!("{problem}");
    }
    let bad = judgement.conditions.iter().filter(|row| !row.condition.is_good).count();
    let errors = judgement.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let warnings = judgement.problems.len() - errors;
    println!(
        "{} objects, {bad} conditions not met, {errors} errors, {warnings} warnings: {}",
        judgement.objects,
        if judgement.is_valid { "valid" } else { "NOT VALID" }
    );
}
