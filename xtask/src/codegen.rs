//! `cargo xtask codegen [--check]`: compiles the .proto with protox and writes the checked-in code.

use anyhow::Result;

/// The directory of the generated code, relative to the workspace root.
#[cfg(feature = "codegen")]
const GENERATED: &str = "snakepit-proto/src/generated";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if the checked-in code differs from newly generated code.
    #[arg(long)]
    check: bool,
}

impl Args {
    /// The arguments `--check`.
    pub(crate) const fn check() -> Self {
        Self { check: true }
    }
}

/// Runs xtask again with the feature `codegen`, which enables the generator's dependencies.
#[cfg(not(feature = "codegen"))]
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--package", "xtask", "--features", "codegen", "--", "codegen"]);
    if args.check {
        cargo.arg("--check");
    }
    let status = cargo.status()?;
    anyhow::ensure!(status.success(), "code generation failed ({status})");
    Ok(())
}

#[cfg(feature = "codegen")]
pub(crate) fn run(args: &Args) -> Result<()> {
    use std::{fs, path::Path};

    use anyhow::{Context, bail};
    use prost::Message;

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    let proto = root.join("snakepit-proto/proto");
    let mut compiler = protox::Compiler::new([&proto])?;
    compiler.include_source_info(true).include_imports(true).open_file("snakepit_bridge.proto")?;
    let descriptors = compiler.file_descriptor_set();

    let output_dir = root.join("target/codegen");
    if output_dir.exists() {
        fs::remove_dir_all(&output_dir)?;
    }
    fs::create_dir_all(&output_dir)?;
    tonic_prost_build::configure()
        // Callers choose the transport, because the generated client accepts any channel.
        .build_transport(false)
        // With `Bytes`, payloads remain slices of the received frame instead of copies.
        .bytes(".")
        // For small maps, a BTreeMap is faster than a HashMap, and its order is stable.
        .btree_map(".")
        // A reply moves through several queues, and almost every reply has a value instead of these.
        .boxed(".snakepit.bridge.CallReply.failure")
        .boxed(".snakepit.bridge.CallReply.status")
        // Generates `Any` instead of using the one from prost-types, so that its payload is `Bytes`.
        .compile_well_known_types(true)
        .extern_path(".google.protobuf.Timestamp", "::prost_types::Timestamp")
        .out_dir(&output_dir)
        .compile_fds(descriptors.clone())?;
    let mut without_source_info = descriptors;
    for file in &mut without_source_info.file {
        file.source_code_info = None;
    }
    fs::write(output_dir.join("descriptor.bin"), without_source_info.encode_to_vec())?;

    let generated = root.join(GENERATED);
    let mut stale = Vec::new();
    for name in ["snakepit.bridge.rs", "google.protobuf.rs", "descriptor.bin"] {
        let new =
            fs::read(output_dir.join(name)).with_context(|| format!("the generator did not write {name}"))?;
        let target = generated.join(name);
        if fs::read(&target).ok().as_deref() != Some(&new) {
            stale.push(name);
            if !args.check {
                fs::create_dir_all(&generated)?;
                fs::write(&target, new)?;
            }
        }
    }
    match (stale.as_slice(), args.check) {
        ([], _) => println!("codegen: up to date"),
        (stale, true) => bail!("{GENERATED} is stale ({}): run `cargo xtask codegen`", stale.join(", ")),
        (stale, false) => println!("codegen: wrote {} in {GENERATED}", stale.join(", ")),
    }
    Ok(())
}
