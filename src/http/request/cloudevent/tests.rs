use super::*;
use crate::http::request::tests::limits;

const GOOD: &str =
    r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","user":"a","data":{"b":1, "a":1.0}}"#;

fn with(member: &str) -> String {
    GOOD.replacen('{', &format!("{{{member},"), 1)
}

fn without(member: &str) -> String {
    let mut value: serde_json::Value = serde_json::from_str(GOOD).unwrap();
    value.as_object_mut().unwrap().remove(member);
    value.to_string()
}

fn pointers(problem: &Problem) -> Vec<&str> {
    problem.members().iter().map(|member| member.pointer.as_str()).collect()
}

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    map
}

const HEADERS: [(&str, &str); 5] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "1"),
    ("ce-source", "/s"),
    ("ce-type", "t"),
    ("ce-user", "a"),
];

#[test]
fn a_document_is_read_and_its_data_left_as_written() {
    let event = structured(GOOD.as_bytes(), &limits()).unwrap();
    assert_eq!((event.source.as_str(), event.id.as_str()), ("/s", "1"));
    assert_eq!(event.publish.kind, "t");
    assert_eq!(event.publish.to, [Channel::User(UserId::new("a").unwrap())]);
    assert_eq!(event.publish.data.get(), r#"{"b":1, "a":1.0}"#);
    let event = structured(without("data").as_bytes(), &limits()).unwrap();
    assert_eq!(event.publish.data.get(), "null");
}

#[test]
fn what_is_not_known_is_ignored() {
    for member in [
        r#""time":"2018-04-05T17:31:00Z""#,
        r#""subject":"x""#,
        r#""dataschema":"x:y""#,
        r#""datacontenttype":"application/vnd.x+json; charset=utf-8""#,
        r#""datacontenttype":"text/json""#,
        r#""datacontenttype":null"#,
        r#""traceparent":"00-x""#,
        r#""extension9":{"a":[]}"#,
        r#""group":null,"broadcast":null"#,
    ] {
        let event = structured(with(member).as_bytes(), &limits());
        assert!(event.is_ok(), "{member}: {event:?}");
    }
}

#[test]
fn targets() {
    for (member, target) in [
        (r#""group":"g""#, Target::Group),
        (r#""broadcast":true"#, Target::Broadcast),
        (r#""broadcast":"true""#, Target::Broadcast),
    ] {
        let body = GOOD.replace(r#""user":"a""#, member);
        let event = structured(body.as_bytes(), &limits()).unwrap();
        assert_eq!(event.publish.target, target, "{member}");
    }
    for (member, pointer) in [
        (r#""user":"""#, "/user"),
        (r#""user":7"#, "/user"),
        (r#""group":true"#, "/group"),
        (r#""broadcast":false"#, "/broadcast"),
        (r#""broadcast":"yes""#, "/broadcast"),
        (r#""broadcast":1"#, "/broadcast"),
        (r#""user":"a","group":"g""#, ""),
        (r#""user":"a","broadcast":false"#, ""),
        (r#""users":"a""#, ""),
    ] {
        let body = GOOD.replace(r#""user":"a""#, member);
        let problem = structured(body.as_bytes(), &limits()).unwrap_err();
        assert_eq!(pointers(&problem), [pointer], "{member}");
    }
}

#[test]
fn every_fault_has_its_place() {
    for (body, expected) in [
        (without("specversion"), "/specversion"),
        (without("id"), "/id"),
        (without("source"), "/source"),
        (without("type"), "/type"),
        (GOOD.replace("1.0\",", "0.3\","), "/specversion"),
        (GOOD.replace(r#""id":"1""#, r#""id":1"#), "/id"),
        (GOOD.replace(r#""id":"1""#, r#""id":"""#), "/id"),
        (GOOD.replace(r#""source":"/s""#, r#""source":null"#), "/source"),
        (GOOD.replace(r#""type":"t""#, r#""type":"ping""#), "/type"),
        (GOOD.replace(r#""type":"t""#, r#""type":"belfry.x""#), "/type"),
        (with(r#""data_base64":"AA==""#), "/data_base64"),
        (with(r#""datacontenttype":"text/plain""#), "/datacontenttype"),
        (with(r#""datacontenttype":7"#), "/datacontenttype"),
        (with(r#""Upper":1"#), "/Upper"),
        (with(r#""a-b":1"#), "/a-b"),
        (with(r#""":1"#), "/"),
        (with(r#""id":"2""#), ""),
        ("[]".to_owned(), ""),
    ] {
        let problem = structured(body.as_bytes(), &limits()).unwrap_err();
        assert_eq!(problem.status(), 422, "{body}");
        assert_eq!(pointers(&problem), [expected], "{body}");
    }
    assert_eq!(structured(b"{", &limits()).unwrap_err().status(), 400);
    let deep = format!("{}{}", "[".repeat(129), "]".repeat(129));
    let mut roomy = limits();
    roomy.data_bytes = 1000;
    let body = GOOD.replace(r#"{"b":1, "a":1.0}"#, &deep);
    assert_eq!(pointers(&structured(body.as_bytes(), &roomy).unwrap_err()), ["/data"]);
    let body = GOOD.replace("1.0}", &format!("\"{}\"}}", "x".repeat(200)));
    assert_eq!(structured(body.as_bytes(), &limits()).unwrap_err().status(), 413);
}

#[test]
fn a_batch_holds_as_a_whole() {
    let all = |items: &[&str]| batch(format!("[{}]", items.join(",")).as_bytes(), &limits());
    assert_eq!(all(&[GOOD, GOOD]).unwrap().len(), 2);
    assert!(all(&[]).unwrap().is_empty());
    let problem = all(&[GOOD, "7", &without("id")]).unwrap_err();
    assert_eq!(pointers(&problem), ["/1", "/2/id"]);
    assert_eq!(pointers(&all(&vec!["1"; 1001]).unwrap_err()), [""]);
    assert_eq!(pointers(&batch(GOOD.as_bytes(), &limits()).unwrap_err()), [""]);
}

#[test]
fn headers_bear_attributes() {
    let mut list = HEADERS.to_vec();
    list[4].1 = "%22a%20%E2%82%AC%2541";
    let map = headers(&list);
    assert!(is_binary(&map));
    let event = binary(&map, Some("application/json"), b" [1, 2.0] ", &limits()).unwrap();
    assert_eq!(event.publish.to, [Channel::User(UserId::new("\"a €%41").unwrap())]);
    assert_eq!(event.publish.data.get(), "[1, 2.0]");
    list[4].1 = r#""a \"b\\""#;
    let event = binary(&headers(&list), None, b"", &limits()).unwrap();
    assert_eq!(event.publish.to, [Channel::User(UserId::new("a \"b\\").unwrap())]);
    assert_eq!(event.publish.data.get(), "null");
    assert!(!is_binary(&headers(&[("ce-other", "x"), ("content-type", "x/y")])));
}

#[test]
fn headers_at_fault() {
    let fault = |more: (&'static str, &str), media_type, body: &[u8]| {
        let map = headers(&[&HEADERS[..], &[more]].concat());
        let problem = binary(&map, media_type, body, &limits()).unwrap_err();
        assert_eq!(problem.status(), 422);
        pointers(&problem).join(" ")
    };
    let none = ("ce-x", "y");
    assert_eq!(fault(("ce-id", "2"), None, b""), "/id");
    assert_eq!(fault(("ce-a-b", "2"), None, b""), "/a-b");
    assert_eq!(fault(("ce-x", "%ff"), None, b""), "/x");
    assert_eq!(fault(none, Some("text/plain"), b"1"), "/datacontenttype");
    assert_eq!(fault(none, None, b"hello"), "/data");
    assert_eq!(fault(none, Some("application/json"), b"\xff"), "/data");
    assert_eq!(fault(("ce-broadcast", "true"), None, b"1"), "");
    let map = headers(&HEADERS[1..]);
    assert_eq!(pointers(&binary(&map, None, b"1", &limits()).unwrap_err()), ["/specversion"]);
}
