//! Compiles `iris.proto` into Rust types, without an installed `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=iris.proto");
    let files = protox::compile(["iris.proto"], ["."])?;
    prost_build::Config::new().compile_fds(files)?;
    Ok(())
}
