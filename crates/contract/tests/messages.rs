//! Every message of the control protocol and of the daemon's `/init`, as it is on the wire. A change shows here as
//! a difference. Servers and executors of different versions speak to each other, so a new field needs a default,
//! and a field that goes must not be missed by an older reader.

use std::collections::BTreeMap;
use std::fmt::Debug;

use sandyard_contract::control::{
    CONTROL_VERSION, ControlCall, ControlFailure, ControlReply, FailureKind, FlushReport, Hello,
    MountCall, MountStatus, Mounted, SignedCall, signing_input,
};
use sandyard_contract::daemon::{InitBody, init_signing_input};
use sandyard_types::{Access, Cache, InstanceId, MountDriver, Secret};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Checks that a message is written as `text`, read from it without loss, and read if every object in it has a
/// field that this version does not know.
#[track_caller]
fn is_written_as<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T, text: &str) {
    assert_eq!(serde_json::to_string(message).expect("written"), text);
    assert_eq!(&serde_json::from_str::<T>(text).expect("read"), message);
    let mut newer: Value = serde_json::from_str(text).expect("JSON");
    add_field(&mut newer);
    assert_eq!(&serde_json::from_value::<T>(newer).expect("read from a newer version"), message);
}

fn add_field(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // The names in this object are data.
            let fixed = fields.iter_mut().filter(|(name, _)| *name != "envVars");
            fixed.for_each(|(_, value)| add_field(value));
            fields.insert("addedLater".to_owned(), json!({"a": [1]}));
        }
        Value::Array(items) => items.iter_mut().for_each(add_field),
        _ => {}
    }
}

fn mount_call(cache: Cache) -> MountCall {
    MountCall {
        bucket: "sandyard".parse().expect("valid"),
        prefix: "sessions/a/".parse().expect("valid"),
        target: "/workspace".parse().expect("valid"),
        access: Access::ReadWrite,
        driver: MountDriver::S3fs,
        endpoint: "http://172.17.0.1:3003".to_owned(),
        access_key_id: "key".to_owned(),
        secret_access_key: Secret::new("secret"),
        uid: 1000,
        gid: 1001,
        cache,
    }
}

#[test]
fn calls() {
    let mounts = vec![
        mount_call(Cache::Disk { limit_mib: 1024 }),
        mount_call(Cache::Tmpfs { size_mib: 64 }),
    ];
    let mount = |cache: &str| {
        format!(
            r#"{{"bucket":"sandyard","prefix":"sessions/a/","target":"/workspace","access":"read-write","driver":"s3fs","endpoint":"http://172.17.0.1:3003","access_key_id":"key","secret_access_key":"secret","uid":1000,"gid":1001,"cache":{cache}}}"#
        )
    };
    let (disk, tmpfs) =
        (mount(r#"{"kind":"disk","limit_mib":1024}"#), mount(r#"{"kind":"tmpfs","size_mib":64}"#));
    is_written_as(
        &ControlCall::Mount { mounts },
        &format!(r#"{{"call":"mount","mounts":[{disk},{tmpfs}]}}"#),
    );
    is_written_as(
        &ControlCall::Stop { flush_limit_ms: 30_000 },
        r#"{"call":"stop","flush_limit_ms":30000}"#,
    );
    is_written_as(&ControlCall::Drain { limit_ms: 30_000 }, r#"{"call":"drain","limit_ms":30000}"#);
    is_written_as(&ControlCall::Resume, r#"{"call":"resume"}"#);
    is_written_as(&ControlCall::Sync { limit_ms: 5 }, r#"{"call":"sync","limit_ms":5}"#);
    is_written_as(&ControlCall::Status, r#"{"call":"status"}"#);
}

#[test]
fn replies() {
    let target = || "/workspace".parse().expect("valid");
    is_written_as(
        &ControlReply::Mounted { mounts: vec![Mounted { target: target(), micros: 13_600 }] },
        r#"{"reply":"mounted","mounts":[{"target":"/workspace","micros":13600}]}"#,
    );
    let complete = FlushReport { complete: true, bytes_left: Some(0), millis: 12 };
    is_written_as(
        &ControlReply::Stopped { flush: complete.clone() },
        r#"{"reply":"stopped","flush":{"complete":true,"bytes_left":0,"millis":12}}"#,
    );
    is_written_as(
        &ControlReply::Drained { flush: complete },
        r#"{"reply":"drained","flush":{"complete":true,"bytes_left":0,"millis":12}}"#,
    );
    is_written_as(&ControlReply::Resumed, r#"{"reply":"resumed"}"#);
    is_written_as(
        &ControlReply::Synced {
            flush: FlushReport { complete: false, bytes_left: None, millis: 5000 },
        },
        r#"{"reply":"synced","flush":{"complete":false,"bytes_left":null,"millis":5000}}"#,
    );
    let status = MountStatus {
        target: target(),
        running: true,
        restarts: 1,
        last_lines: vec!["the program was killed by signal 9".to_owned()],
    };
    is_written_as(
        &ControlReply::Status { mounts: vec![status] },
        r#"{"reply":"status","mounts":[{"target":"/workspace","running":true,"restarts":1,"last_lines":["the program was killed by signal 9"]}]}"#,
    );
    for (kind, name) in [
        (FailureKind::Unauthorized, "unauthorized"),
        (FailureKind::BadCall, "bad-call"),
        (FailureKind::NoFuse, "no-fuse"),
        (FailureKind::Program, "program"),
        (FailureKind::Attach, "attach"),
    ] {
        let failure = ControlFailure {
            kind,
            message: "why".to_owned(),
            program_output: vec!["line".to_owned()],
        };
        let text = format!(
            r#"{{"reply":"failed","kind":"{name}","message":"why","program_output":["line"]}}"#
        );
        is_written_as(&ControlReply::Failed(failure), &text);
    }
}

#[test]
fn greeting_and_signed_call() {
    let hello = Hello { nonce: "00ff".to_owned(), version: CONTROL_VERSION };
    is_written_as(&hello, r#"{"nonce":"00ff","version":1}"#);
    let older: Hello = serde_json::from_str(r#"{"nonce":"00ff"}"#).expect("read");
    assert_eq!(older.version, 0, "from before there were versions");
    is_written_as(
        &SignedCall { signature: "aa".to_owned(), body: r#"{"call":"status"}"#.to_owned() },
        r#"{"signature":"aa","body":"{\"call\":\"status\"}"}"#,
    );
}

#[test]
fn claim_of_the_daemon() {
    let body = InitBody {
        access_token: Secret::new("token"),
        env_vars: Some(BTreeMap::from([("A".to_owned(), "1".to_owned())])),
        default_user: Some("user".to_owned()),
        default_workdir: Some("/home/user".to_owned()),
        timestamp: Some(time::macros::datetime!(2026-01-02 03:04:05.6 UTC)),
        sandbox_id: Some("i1".to_owned()),
        template_id: Some("base".to_owned()),
        secured: true,
        control_token: Some(Secret::new("control")),
    };
    is_written_as(
        &body,
        r#"{"accessToken":"token","envVars":{"A":"1"},"defaultUser":"user","defaultWorkdir":"/home/user","timestamp":"2026-01-02T03:04:05.6Z","sandboxID":"i1","templateID":"base","secured":true,"controlToken":"control"}"#,
    );
    let least = InitBody {
        env_vars: None,
        default_user: None,
        default_workdir: None,
        sandbox_id: None,
        template_id: None,
        secured: false,
        control_token: None,
        ..body
    };
    is_written_as(
        &least,
        r#"{"accessToken":"token","timestamp":"2026-01-02T03:04:05.6Z","secured":false}"#,
    );
    let older = r#"{"accessToken":"token","timestamp":"2026-01-02T03:04:05.6Z"}"#;
    assert_eq!(serde_json::from_str::<InitBody>(older).expect("read"), least);
}

#[test]
fn what_is_signed() {
    let instance: InstanceId = "00112233445566778899aabbccddeeff".parse().expect("valid");
    assert_eq!(
        signing_input(&instance, "00ff", r#"{"call":"status"}"#),
        b"sandyard control v1\n00112233445566778899aabbccddeeff\n00ff\n{\"call\":\"status\"}"
    );
    assert_eq!(
        init_signing_input(&instance, 2, "abcd"),
        b"sandyard init v2\n00112233445566778899aabbccddeeff\n2\nabcd"
    );
}
