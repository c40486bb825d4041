//! Files that anybody may put into a source's folder: text is taken apart, parsed and turned into objects without a panic,
//! and every place that is reported lies inside the text.
//!
//! Input: the text of one file. What is not UTF-8 is refused before this code.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(
    dead_code,
    reason = "the fuzz target takes one file of the agent's package, not the package with its kernel object"
)]
#[path = "../../../agent/src/source/yaml.rs"]
mod yaml;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let lines = yaml::rows(text).count() as u64 + 1;
    for document in yaml::split(text) {
        assert!(text.contains(document.text) && document.line <= lines);
        match yaml::parse(document.text) {
            Ok(value) => {
                let place =
                    yaml::locate(document.text, "spec.rules.0.matches[0].path").expect("what is parsed has a place");
                assert!(document.line + place.line - 1 <= lines, "line {} of {lines}", place.line);
                let _ = tidegate_gateway_api::parse(value);
            }
            Err(error) => assert!(document.line + error.position.line - 1 <= lines, "{error:?} in {lines} lines"),
        }
    }
});
