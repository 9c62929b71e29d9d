//! x
/// Demo
#[derive(clap::Args, Debug)]
#[command(after_help = "waypost demo")]
pub struct Demo {}
impl Demo {
    pub async fn run(self) -> anyhow::Result<std::process::ExitCode> {
        todo!()
    }
}
