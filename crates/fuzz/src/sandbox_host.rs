//! The names under which ports of sandboxes are reached (control-plane 5.5).

use sandyard_contract::sandbox_host::{
    InvalidHost, ProxyTarget, names_no_sandbox, port_of, target_of_host, without_port,
};

/// Takes the authority of a request. What is read from it says again what it was read from, by nothing but
/// its first label, and whatever port it is asked at.
pub fn fuzz_sandbox_host(data: &[u8]) {
    let Ok(authority) = str::from_utf8(data) else {
        return;
    };
    let host = without_port(authority);
    assert!(authority.contains(host), "{authority:?}: a host of its own");
    if !authority.starts_with('[') {
        assert_eq!(without_port(&format!("{host}:3002")), host, "{authority:?}");
    }
    assert_eq!(names_no_sandbox(host), names_no_sandbox(&host.to_ascii_uppercase()), "{host:?}");

    let read = target_of_host(host);
    assert_eq!(read, expected(host), "{host:?}");
    let Ok(ProxyTarget { id, port }) = read else {
        return;
    };
    let label = format!("{port}-{id}");
    for same in [format!("{label}."), format!("{label}-suffix-2.any.where")] {
        let again = ProxyTarget { id: id.clone(), port };
        assert_eq!(target_of_host(&same), Ok(again), "{same:?} of {host:?}");
    }
    assert_eq!(target_of_host(&label), Err(InvalidHost::Form), "{label:?} has no domain");
    assert_eq!(port_of(&port.to_string()), Some(port));
}

/// The same, letter by letter, by the contract's words.
fn expected(host: &str) -> Result<ProxyTarget, InvalidHost> {
    let Some(end) = host.find('.') else {
        return Err(InvalidHost::Form);
    };
    let label = &host[..end];
    let Some(dash) = label.find('-') else {
        return Err(InvalidHost::Form);
    };
    let digits = label[..dash].trim();
    let mut port = 0_u32;
    for letter in digits.chars() {
        let digit = letter.to_digit(10).filter(|_| letter.is_ascii()).ok_or(InvalidHost::Port)?;
        port = port.saturating_mul(10).saturating_add(digit);
    }
    let port = u16::try_from(port).ok().filter(|port| *port > 0).ok_or(InvalidHost::Port)?;
    let id = &label[dash + 1..];
    let id = &id[..id.find('-').unwrap_or(id.len())];
    let known = |letter: char| letter.is_ascii_digit() || letter.is_ascii_lowercase();
    // 63 is what a label can carry.
    if id.is_empty() || id.len() > 63 || !id.chars().all(known) {
        return Err(InvalidHost::Id);
    }
    Ok(ProxyTarget { id: id.parse().map_err(|_| InvalidHost::Id)?, port })
}
