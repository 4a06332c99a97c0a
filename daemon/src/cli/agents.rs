//! `agents`: what the config defines, and whether it can run here.

use super::Context;
use super::arguments::Rollout;
use super::client::Call;
use super::error::CommandError;
use super::pages::whole_list;
use super::scrub::shortened;
use super::table::Table;
use crate::api::shape::{AgentView, Requested};

const COMMAND_CHARACTERS_MAX: usize = 30;

pub(crate) async fn agents(context: &mut Context<'_>) -> Result<(), CommandError> {
    let agents = whole_list(&context.client, "/v1/agents").await?;
    context.show(&agents.to_json(), |context| {
        let views: Vec<AgentView> = agents.typed(&context.client)?;
        Ok(context.terminal.line(&render(&views))?)
    })
}

pub(crate) async fn rollout(
    arguments: Rollout,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let Rollout { what, agent } = arguments;
    let path = format!("/v1/agents/{agent}/rollout/{}", what.word());
    let value = context.client.json(Call::post(path)).await?;
    context.show(&value, |context| {
        let requested: Requested = context.client.typed(&value)?;
        let text = match requested.because {
            None => format!("{agent}: done; dormouse agents tells how it stands"),
            Some(_) => format!("{agent}: nothing to do, it is so already"),
        };
        Ok(context.terminal.line(&text)?)
    })
}

fn render(agents: &[AgentView]) -> String {
    if agents.is_empty() {
        return "No agents. Add one to the config: [agents.NAME], as in the commented default file"
            .to_owned();
    }
    let mut table =
        Table::new(["AGENT", "DRIVER", "ADAPTER", "REVISION", "AWAKE", "SESSIONS", "COMMAND"]);
    let mut lacking = String::new();
    for agent in agents {
        table.row([
            agent.agent.clone(),
            agent.driver.clone(),
            agent.adapter.clone(),
            match agent.revision {
                0 => "-".to_owned(),
                revision => revision.to_string(),
            },
            agent.awake.to_string(),
            agent.sessions.to_string(),
            shortened(&agent.command.join(" "), COMMAND_CHARACTERS_MAX).into_owned(),
        ]);
        if let Some(rollout) = &agent.rollout {
            let line = format!("{}: {rollout}", agent.agent);
            lacking.push_str(&format!("\n{}", super::scrub::line(&line)));
        }
        for lack in &agent.lacks {
            let line = format!("{} cannot run here: {lack}", agent.agent);
            lacking.push_str(&format!("\n{}", super::scrub::line(&line)));
        }
    }
    let gap = if lacking.is_empty() { "" } else { "\n" };
    format!("{}{gap}{lacking}", table.render())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn agents_are_listed_with_what_they_lack() {
        let agent = |name: &str, lacks: &[&str]| AgentView {
            agent: name.to_owned(),
            driver: "process".to_owned(),
            adapter: "jsonl".to_owned(),
            command: vec!["python3".to_owned(), "x".repeat(100)],
            awake: 1,
            sessions: 20,
            revision: 1,
            rollout: Some("revision 2 is tried by a/k; the others run revision 1".to_owned()),
            lacks: lacks.iter().map(|lack| (*lack).to_owned()).collect(),
        };
        let agents = [agent("python", &[]), agent("openclaw", &["node is not in PATH"])];
        expect![[r#"
            AGENT     DRIVER   ADAPTER  REVISION  AWAKE  SESSIONS  COMMAND
            python    process  jsonl    1         1      20        python3 xxxxxxxxxxxxxxxxxxxxx…
            openclaw  process  jsonl    1         1      20        python3 xxxxxxxxxxxxxxxxxxxxx…

            python: revision 2 is tried by a/k; the others run revision 1
            openclaw: revision 2 is tried by a/k; the others run revision 1
            openclaw cannot run here: node is not in PATH
        "#]]
        .assert_eq(&format!("{}\n", render(&agents)));
        assert!(render(&[]).contains("[agents.NAME]"));
    }
}
