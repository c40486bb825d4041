//! The dashboards and the rule file as they lie in `deploy`, read as their users read them.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::Value;

/// One expression of a panel.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    /// File of the dashboard, less its ending.
    pub(super) board: String,
    pub(super) title: String,
    /// As in the file, with variables.
    pub(super) expression: String,
}

/// One alert.
#[derive(Clone, Debug)]
pub(super) struct Alert {
    pub(super) name: String,
    pub(super) expression: String,
}

impl Panel {
    /// The expression with the variables as Grafana fills them in with "All" and a range of half a minute.
    pub(super) fn filled_in(&self) -> String {
        let text = self.expression.replace("$instance", ".*").replace("$domain", ".*");
        let text = text.replace("$__rate_interval", "30s");
        assert!(!text.contains('$'), "{}: a variable that no test knows: {text}", self.title);
        text
    }
}

impl Alert {
    /// The value that is compared, without the comparison. Every rule has this form.
    pub(super) fn value(&self) -> &str {
        let (value, comparison) = self
            .expression
            .rsplit_once([' '])
            .and_then(|(rest, number)| {
                number.parse::<f64>().ok()?;
                rest.rsplit_once(' ')
            })
            .unwrap_or_else(|| panic!("{}: not of the form VALUE OPERATOR NUMBER", self.name));
        assert!(["==", ">", "<"].contains(&comparison), "{}: {comparison}", self.name);
        value
    }
}

/// Folder of what users deploy.
pub(super) fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Every dashboard by the name of its file.
pub(super) fn dashboards() -> Vec<(String, Value)> {
    let files = fs::read_dir(deploy().join("grafana")).unwrap().map(|entry| entry.unwrap().path());
    let boards: Vec<(String, Value)> = files
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let board = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.file_stem().unwrap().to_string_lossy().into_owned(), board)
        })
        .collect();
    assert!(boards.len() >= 3, "dashboards are missing");
    boards
}

/// Every expression of every panel.
pub(super) fn panels() -> Vec<Panel> {
    let mut all = Vec::new();
    for (board, content) in dashboards() {
        for panel in content["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().into_iter().flatten() {
                all.push(Panel {
                    board: board.clone(),
                    title: panel["title"].as_str().expect("a title").to_owned(),
                    expression: target["expr"].as_str().expect("an expression").to_owned(),
                });
            }
        }
    }
    all
}

/// The rule file.
pub(super) fn rule_file() -> PathBuf {
    deploy().join("prometheus/tidegate.rules.yaml").canonicalize().unwrap()
}

/// Names of this project's metrics in an expression.
pub(super) fn metric_names(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("tidegate_")).map(str::to_owned).collect()
}
