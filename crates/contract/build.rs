//! Compiles the in-sandbox API's messages, with no `protoc` on the machine: `protox` reads the files,
//! `prost-build` makes the types, `pbjson-build` their canonical proto3 JSON (executor 2.3).

#[cfg(not(feature = "rpc"))]
fn main() {}

#[cfg(feature = "rpc")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use prost::Message;

    println!("cargo:rerun-if-changed=proto");
    let out = std::path::PathBuf::from(
        std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this by cargo")?,
    );
    let descriptors = protox::compile(["process.proto", "filesystem.proto"], ["proto"])?;
    let encoded = descriptors.encode_to_vec();

    prost_build::Config::new()
        .bytes(["."])
        .btree_map(["."])
        .compile_well_known_types()
        .extern_path(".google.protobuf.Timestamp", "crate::rpc::Timestamp")
        .out_dir(&out)
        .compile_fds(descriptors)?;

    // Whatever a newer client sends that we do not know is ignored, as the original does.
    let mut json = pbjson_build::Builder::new();
    json.register_descriptors(&encoded)?
        .btree_map(["."])
        .ignore_unknown_fields()
        .ignore_unknown_enum_variants()
        .extern_path(".google.protobuf", "crate::rpc")
        .out_dir(&out)
        .build(&[".process", ".filesystem"])?;
    Ok(())
}
