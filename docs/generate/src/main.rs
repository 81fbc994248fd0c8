//! Writes the pages of the reference.

use std::path::Path;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pages");
    for page in loam_docs::pages() {
        let path = root.join(page.file);
        std::fs::write(&path, page.text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
