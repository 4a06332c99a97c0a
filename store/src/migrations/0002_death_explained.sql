-- Schema 2: why instances ended, and what sessions have learned of their memory.

ALTER TABLE session ADD COLUMN memory TEXT; -- JSON: the learned limit; NULL: the configured one
ALTER TABLE exit ADD COLUMN circumstances TEXT; -- JSON: what the daemon knew of the end
ALTER TABLE exit ADD COLUMN diagnosis TEXT; -- JSON: the cause, and what it rests on

-- Causes that have other names now.
UPDATE session SET last_failure = 'app_exit' WHERE last_failure = 'agent_exited';
UPDATE session SET last_failure = 'killed_outside' WHERE last_failure = 'agent_killed';
UPDATE session SET last_failure = 'oom_limit' WHERE last_failure = 'agent_out_of_memory';
UPDATE message SET cause = 'app_exit' WHERE cause = 'agent_exited';
UPDATE message SET cause = 'killed_outside' WHERE cause = 'agent_killed';
UPDATE message SET cause = 'oom_limit' WHERE cause = 'agent_out_of_memory';
UPDATE exit SET cause = 'app_exit' WHERE cause = 'agent_exited';
UPDATE exit SET cause = 'killed_outside' WHERE cause = 'agent_killed';
UPDATE exit SET cause = 'oom_limit' WHERE cause = 'agent_out_of_memory';
UPDATE journal SET because = replace(replace(replace(because,
    '"cause":"agent_exited"', '"cause":"app_exit"'),
    '"cause":"agent_killed"', '"cause":"killed_outside"'),
    '"cause":"agent_out_of_memory"', '"cause":"oom_limit"')
WHERE because LIKE '%"cause":"agent\_%' ESCAPE '\';
