//! The body of `POST /v1/presence`.

use super::{members::only, user_list};
use crate::{event::UserId, http::problem::Problem};

/// Whose presence is asked for, each once.
///
/// # Errors
/// 400 where it is not JSON, else 422 with every member at fault.
pub(in crate::http) fn parse(body: &[u8]) -> Result<Vec<UserId>, Problem> {
    only(body, "users", user_list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_its_place() {
        assert_eq!(parse(br#"{"users":["a","b","a"]}"#).unwrap().len(), 2);
        for (body, pointer) in [
            ("{}", "/users"),
            (r#"{"users":"a"}"#, "/users"),
            (r#"{"users":["a",""]}"#, "/users/1"),
            (r#"{"users":["a",7]}"#, "/users/1"),
            (r#"{"users":[],"user":"a"}"#, "/user"),
        ] {
            let problem = parse(body.as_bytes()).unwrap_err();
            assert_eq!(problem.status(), 422, "{body}");
            assert_eq!(problem.members()[0].pointer, pointer, "{body}");
        }
    }
}
