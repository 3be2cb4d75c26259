//! `cargo xtask codegen [--check]`: compiles the .proto with protox and writes the generated code that is checked in.

use anyhow::Result;

/// Where the generated code lives, from the workspace root.
#[cfg(feature = "codegen")]
const GENERATED: &str = "snakepit-proto/src/generated";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail when the checked-in code differs from what would be generated.
    #[arg(long)]
    check: bool,
}

impl Args {
    /// Only check.
    pub(crate) const fn check() -> Self {
        Self { check: true }
    }
}

/// The generator's dependencies are behind a feature, so the verb runs itself once more with that feature on.
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

    let fresh = root.join("target/codegen");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh)?;
    tonic_prost_build::configure()
        // The transport is the caller's choice; the generated client takes any channel.
        .build_transport(false)
        // Payloads pass through the host as slices of the received frame.
        .bytes(".")
        // Small maps are faster ordered than hashed, and print the same every time.
        .btree_map(".")
        // `Any` is generated here rather than taken from prost-types because its payload must be `Bytes` too.
        .compile_well_known_types(true)
        .extern_path(".google.protobuf.Timestamp", "::prost_types::Timestamp")
        .out_dir(&fresh)
        .compile_fds(descriptors.clone())?;
    let mut slim = descriptors;
    for file in &mut slim.file {
        file.source_code_info = None;
    }
    fs::write(fresh.join("descriptor.bin"), slim.encode_to_vec())?;

    let generated = root.join(GENERATED);
    let mut stale = Vec::new();
    for name in ["snakepit.bridge.rs", "google.protobuf.rs", "descriptor.bin"] {
        let new = fs::read(fresh.join(name)).with_context(|| format!("nothing was generated for {name}"))?;
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
