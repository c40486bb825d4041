//! Writes the CustomResourceDefinitions of group `tidegate.dev` into a folder, one file each. `cargo xtask crds` runs it.

use std::{env, error::Error, fs, path::PathBuf};

use serde_json::Value;

/// First line of each file; `cargo xtask crds` replaces only files that have it.
const HEADER: &str = "# Written by `cargo xtask crds` from the types in agent/crates/gateway-api/src/api. Do not edit.";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(env::args_os().nth(1).ok_or("name the folder to write to")?);
    for crd in tidegate_gateway_api::api::crds() {
        let names = &crd.spec.names;
        let file = folder.join(format!("{}_{}.yaml", crd.spec.group, names.plural));
        // By way of a value: its fields are sorted, which a diff of two versions is read by.
        let mut value = serde_json::to_value(&crd)?;
        simplify(&mut value);
        let text = serde_saphyr::to_string(&value)?;
        fs::write(&file, format!("{HEADER}\n{text}"))?;
    }
    Ok(())
}

/// Writes whole numbers as such, and leaves out formats that API servers do not know and warn about (`uint16`).
fn simplify(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                fields.remove("format");
            }
            fields.values_mut().for_each(simplify);
        }
        Value::Array(items) => items.iter_mut().for_each(simplify),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|whole| number.is_f64() && whole.fract() == 0.0) {
                *value = Value::from(whole as i64);
            }
        }
        _ => {}
    }
}
