use super::*;

#[test]
fn names_keep_every_legal_character() {
    for name in [
        "a",
        ":",
        "tenant:42",
        "a:b:c",
        ":x",
        "x:",
        "*",
        "a?b[c]/{d}",
        " ",
        "josé",
        "🔔",
        "Bob ",
        "a\u{200d}b",
    ] {
        assert_eq!(UserId::new(name).unwrap().as_str(), name);
    }
}

#[test]
fn names_outside_the_rule_are_refused() {
    assert_eq!(UserId::new(""), Err(NameError::Empty));
    assert_eq!(UserId::new(&"x".repeat(257)), Err(NameError::TooLong));
    assert_eq!(UserId::new(&"é".repeat(129)), Err(NameError::TooLong));
    assert!(UserId::new(&"é".repeat(128)).is_ok());
    for bad in ["a\0", "\n", "a\u{7f}", "\u{85}"] {
        assert_eq!(UserId::new(bad), Err(NameError::Control), "{bad:?}");
    }
}

#[test]
fn every_cause_has_a_legal_code_and_a_short_reason() {
    for cause in CloseCause::ALL {
        assert!(cause.label().len() <= 123);
        let code = cause.code();
        assert!(matches!(code, 1000..=1013 | 4000..=4999), "{code}");
    }
}
