//! When a subject is written and when it is left alone.

use serde_json::json;

use super::*;

#[test]
fn waits_for_nodes_once_for_each_generation() {
    let mut subject = Subject::default();
    let start = Instant::now();
    let desired = |generation, is_pending| Desired { status: json!({}), generation: Some(generation), is_pending };
    assert_eq!(subject.wait_for_nodes(&desired(1, true), start), Some(start + GRACE));
    assert_eq!(subject.wait_for_nodes(&desired(1, true), start + GRACE / 2), Some(start + GRACE));
    assert_eq!(subject.wait_for_nodes(&desired(1, true), start + GRACE), None, "then it is said that it is pending");
    assert!(subject.wait_for_nodes(&desired(2, true), start + GRACE).is_some());
    assert_eq!(subject.wait_for_nodes(&desired(2, false), start + GRACE), None);
}

#[test]
fn what_an_api_server_fills_in_is_no_status() {
    assert!(!has_content(&json!(null)));
    assert!(!has_content(&json!({"conditions": [{"type": "Accepted", "status": "Unknown", "reason": "Pending"}]})));
    assert!(!has_content(&json!({"parents": []})));
    assert!(has_content(&json!({"conditions": [{"type": "Accepted", "status": "True"}]})));
    assert!(has_content(&json!({"parents": [{"controllerName": "other.example/c"}]})));
}

#[test]
fn versions_are_compared_as_numbers() {
    assert!(is_older("9", "10") && !is_older("10", "9") && !is_older("10", "10"));
    assert!(!is_older("a", "10") && !is_older("10", ""));
}
